"""Parameters that peft adapts by themselves (`target_parameters`): those of all experts in one tensor, a router's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from torch import nn

from loraft.adapters.lora_factors import ADAPTER_NAME, INNER, LoraFactors
from loraft.kernels.packed_experts import PackedExperts
from loraft.models.modules import modules_of


@dataclass(frozen=True)
class AdaptedParameter:
    """A parameter with an update of its own.

    Attributes:
        name: Its name in the base.
        scale: What B A is multiplied by.
        experts: How many matrices it holds; 1 is a parameter of two dimensions.
        transposed: Whether its matrices lie as `[in, out]`.
    """

    name: str
    scale: float
    experts: int
    transposed: bool


def adapted_parameters(model: PeftModel) -> dict[str, AdaptedParameter]:
    """The parameters that the one adapter of a model adapts, by the place that the factors of each have in a file."""
    wrappers = modules_of(model.get_base_model(), ParamWrapper)
    return {place: adapted_parameter(module, place, ADAPTER_NAME) for place, module in wrappers.items()}


def adapted_parameter(wrapper: ParamWrapper, place: str, adapter: str) -> AdaptedParameter:
    """What peft's wrapper around a module knows of its parameter."""
    while place.endswith(INNER):
        place = place.removesuffix(INNER)
    name, experts = f"{place}.{wrapper.parameter_name}", int(wrapper.num_experts)
    transposed = experts > 1 and not wrapper._did_swap_in_out_features
    return AdaptedParameter(name, float(wrapper.scaling[adapter]), experts, transposed)


class PackedWrapper(ParamWrapper):
    """peft's wrapper of a parameter, where that is in 4 bits: its module adds the update to what is dequantized."""

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        experts: Any = self.get_base_layer()
        acting = [name for name in active_adapters if name in self.lora_A]
        factors: Any = self.get_delta_factors
        experts.updates[self.parameter_name] = [factors(name) for name in acting]
        try:
            yield
        finally:
            del experts.updates[self.parameter_name]


def wrap_packed(model: nn.Module) -> None:
    """Let peft's wrappers of parameters in 4 bits act: parametrizations, as peft has them, would not come off again."""
    for module in modules_of(model, ParamWrapper).values():
        if isinstance(module.get_base_layer(), PackedExperts):
            module.__class__ = PackedWrapper


def parameter_factors(wrapper: Any, place: str, adapter: str) -> tuple[LoraFactors, AdaptedParameter]:
    """The update of a parameter of a model, and what it is of."""
    of = adapted_parameter(wrapper, place, adapter)
    a, b = wrapper.lora_A[adapter].weight.detach(), wrapper.lora_B[adapter].weight.detach()
    return LoraFactors(a, b, of.scale, experts=of.experts), of
