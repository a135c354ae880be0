"""Biases of the base that an adapter trains (peft's `bias`): kept apart, so that the base without it has its own.

peft writes them into the base and leaves them there when the adapter is switched off, or another one acts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor, nn

KEPT_AS = "_loraft_biases"
"""The attribute of peft's wrapper that holds them."""


@dataclass(frozen=True, eq=False)
class TrainedBiases:
    """The biases that one adapter of a model trains.

    Attributes:
        adapter: What peft calls it.
        parameters: The biases, by their names in the base.
        own: What the base itself has.
        trained: What the adapter has: the very memory that is trained or loaded into.
    """

    adapter: str
    parameters: dict[str, nn.Parameter]
    own: dict[str, Tensor]
    trained: dict[str, Tensor]

    def act(self, names: Collection[str]) -> None:
        """Let the base compute with what the adapter has if it is among `names`, or else with its own."""
        values = self.trained if self.adapter in names else self.own
        for name, parameter in self.parameters.items():
            parameter.data = values[name]


def keep_biases(model: PeftModel, adapter: str) -> None:
    """Keep the biases that peft made trainable for an adapter that was just added; its values are not yet decided.

    They are trained in float32. So is the rest of a norm held then: on a CPU it takes no weight of another dtype.
    """
    base, inside = model.get_base_model(), (".lora_", ".modules_to_save.", ".original_module.")
    found = {
        name: weight
        for name, weight in base.named_parameters()
        if weight.requires_grad and name.endswith(".bias") and not any(part in name for part in inside)
    }
    for name in found:
        if isinstance(module := base.get_submodule(name.rpartition(".")[0]), nn.LayerNorm):
            module.float()
    own = {name: weight.data.clone() for name, weight in found.items()}
    for weight in found.values():
        weight.data = weight.data.float()
    setattr(model, KEPT_AS, TrainedBiases(adapter, found, own, {name: weight.data for name, weight in found.items()}))


def let_biases_act(model: nn.Module, adapters: Collection[str]) -> None:
    """Let a model compute with the biases of these adapters, by peft's names, or with its own where they have none."""
    if (biases := biases_of(model)) is not None:
        biases.act(adapters)


def biases_of(model: nn.Module) -> TrainedBiases | None:
    """The biases that an adapter of a model trains; None where none does."""
    return getattr(model, KEPT_AS, None)
