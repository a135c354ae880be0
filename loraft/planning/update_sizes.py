"""What dropout and DoRA keep of a layer beside a plain update of its modules."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from loraft.adapters.targets import TargetModules
from loraft.config.sections import LoraSection
from loraft.models.modules import is_within, linear_modules
from loraft.models.registry import ModelSpec


@dataclass(frozen=True)
class UpdateSizes:
    """What dropout and DoRA keep beside a plain update, of the linear modules that one layer adapts.

    Attributes:
        dropout: There is dropout before the updates.
        dora: They are DoRA's.
        modules: In-features and out-features of each module.
        shared: The in-features, counted once for those that lie side by side and are as wide: they read one tensor, but
            for what an attention gives, which it keeps itself.
    """

    dropout: bool
    dora: bool
    modules: tuple[tuple[int, int], ...]
    shared: int

    def of_a_token(self, width: int, device: str) -> int:
        """Bytes of a token, with numbers of `width` bytes.

        Each module drops from its input by itself, and keeps what is left and what it dropped, of which a number is a
        byte on CUDA; the input that they would share is then let go. DoRA keeps the output before it is scaled.
        """
        inputs, outputs = (sum(sizes) for sizes in zip(*self.modules, strict=True)) if self.modules else (0, 0)
        dropped = inputs * (width + (1 if device == "cuda" else width)) - self.shared * width
        return self.dropout * dropped + self.dora * width * outputs


PLAIN = UpdateSizes(dropout=False, dora=False, modules=(), shared=0)


def update_sizes(
    model: PreTrainedModel, family: ModelSpec, targets: TargetModules | None, lora: LoraSection
) -> dict[str, UpdateSizes]:
    """Those of the lowest adapted layer of each stack of a model on the meta device."""
    found, linear = dict.fromkeys(family.stacks, PLAIN), linear_modules(model)
    if targets is None:
        return found
    for stack, layers in targets.layers_by_stack.items():
        layer = f"{family.stacks[stack]}.{layers[0]}"
        inside = {name: linear[name] for name in targets.modules if name in linear and is_within(name, layer)}
        found[stack] = UpdateSizes(
            dropout=lora.dropout > 0,
            dora=lora.use_dora,
            modules=tuple(inside.values()),
            shared=sum(inputs for _, inputs in {(name.rpartition(".")[0], sizes[0]) for name, sizes in inside.items()}),
        )
    return found
