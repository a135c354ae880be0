"""The low-rank update as training computes it: x Wᵀ + scale · x Aᵀ Bᵀ, brought to DoRA's magnitudes, as peft has it.

In training base and update are one function with a backward of its own, which adds in place (`adapted_products`), over
weights in 4 and 8 bits as well. In evaluation mode, merged, disabled or saved, and over modules that are not linear, a
layer is peft's own, to the bit but for DoRA's norms: that multiplies by the scale and adds in passes of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraft.kernels.linear_weights import is_quantized, product_dtype
from loraft.kernels.low_rank.adapted_products import Adapted, adapted_products
from loraft.kernels.low_rank.dora import FactoredDora
from loraft.kernels.low_rank.started_factor import factor_of


def patch_lora_linears(model: nn.Module, name: str, same_input: Iterable[Sequence[str]] = ()) -> None:
    """Let every LoRA and DoRA layer of `model` over a linear module, quantized or not, train `Together`.

    Updates with a bias, those of parameters and those over other modules stay peft's own.

    Args:
        model: The model with adapter layers in it.
        name: The adapter.
        same_input: Names of children of one module that are given the same input, in the order of their calls.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module, name):
            layer: Any = module
            kind: Any = type(layer)
            is_linear = kind is Linear and type(layer.base_layer) in (nn.Linear, Conv1D)
            if is_linear or is_quantized(layer.base_layer):
                layer.__class__ = computed_together(kind)
    for module in model.modules():
        children = dict(module.named_children())
        for names in same_input:
            layers = [child for child in map(children.get, names) if isinstance(child, Together)]
            if len({child.base_layer.weight.dtype for child in layers}) == 1 < len(layers):
                readers = _Readers(layers)
                for layer in layers:
                    layer._readers = readers
                module.register_forward_hook(readers.forget, always_call=True)


def _is_plain(layer: LoraLayer, name: str) -> bool:
    """Whether an adapter's update of a layer is A and B, with magnitudes or without, added to the layer's output."""
    if isinstance(layer, ParamWrapper) or name not in layer.lora_A or layer.lora_bias[name]:
        return False
    return name not in layer.lora_variant or isinstance(_magnitudes(layer, name), FactoredDora)


def _magnitudes(layer: LoraLayer, name: str) -> Any:
    """What peft computes an adapter's DoRA by, or None."""
    return dict(layer.lora_magnitude_vector.items()).get(name)


def modules_of_adapted_parameters(model: nn.Module) -> set[nn.Module]:
    """The modules of which an adapter adapts a parameter by itself: their weight is another one in each forward."""
    return {module.get_base_layer() for module in model.modules() if isinstance(module, ParamWrapper)}


class Together(nn.Module, LoraLayer):
    """Set before the class of peft's layer, which then computes base and update together while it trains.

    The first of several layers that read the same input computes the outputs of all; the others find theirs ready.
    """

    _readers: _Readers | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        if not args and not kwargs and self.is_plain and self.in_dtype_of(x):
            return self._readers.output_of(self, x) if self._readers else together(x, [self])[0]
        output: Tensor = super().forward(x, *args, **kwargs)
        return output

    def in_dtype_of(self, x: Tensor) -> bool:
        """Whether its products are in the dtype of those with `x`: a quantized module may have one of its own."""
        base: Any = self.base_layer
        return not is_quantized(base) or base.compute_dtype in (None, product_dtype(x))

    @property
    def is_plain(self) -> bool:
        """Whether it trains one adapter on a frozen weight, as `adapted_products` computes it."""
        (name, *others), base = self.active_adapters or [None], self.base_layer
        if not self.training or others or self.disable_adapters or self.merged:
            return False
        return name in self.lora_A and not base.weight.requires_grad

    @property
    def drops(self) -> bool:
        """Whether dropout is drawn for what its update reads: for each layer another."""
        return not isinstance(self.lora_dropout[self.active_adapters[0]], nn.Identity)


@cache
def computed_together(kind: Any) -> Any:
    """A layer of peft, of class `kind`, that computes base and update together."""
    return type(f"Together{kind.__name__}", (Together, kind), {})


def together(x: Tensor, layers: Sequence[Together]) -> tuple[Tensor, ...]:
    """The outputs of layers that read the same `x`, in one function; one that draws dropout stands alone in it."""
    first: Any = layers[0]
    dtype = product_dtype(x if is_quantized(first.base_layer) else first.base_layer.weight)
    adapted = [_adapted(layer, layer.active_adapters[0], dtype) for layer in layers]
    dropped = first.lora_dropout[first.active_adapters[0]](x) if first.drops else None
    assert dropped is None or len(layers) == 1, "each layer draws its own"
    return adapted_products(x, adapted, dtype, dropped)


def _adapted(layer: Together, name: str, dtype: torch.dtype) -> Adapted:
    """A layer as it is computed in `dtype`."""
    base, a, b, scale = layer.base_layer, layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    magnitudes, factors = _magnitudes(layer, name), None
    if magnitudes is not None:
        factors = magnitudes.weight / magnitudes.norms(base, a, b, scale, dtype)
    return Adapted(base, factor_of(a), factor_of(b), scale, factors)


@dataclass(eq=False)
class _Readers:
    """Layers of one module that are given the same tensor, one after the other, while that module runs.

    Attributes:
        read: What the first one was given.
        ready: The outputs for it that are not yet asked for.
    """

    layers: list[Together]
    read: Tensor | None = None
    ready: dict[Together, Tensor] = field(default_factory=dict)

    def output_of(self, layer: Together, x: Tensor) -> Tensor:
        """A layer's output for `x`; what is ready is given only for the very tensor that it was computed from."""
        if layer is self.layers[0] and all(other.is_plain and not other.drops for other in self.layers):
            self.read, self.ready = x, dict(zip(self.layers, together(x, self.layers), strict=True))
        out = self.ready.pop(layer, None) if x is self.read else None
        return together(x, [layer])[0] if out is None else out

    def forget(self, *_: Any) -> None:
        """Keep nothing: the module that the layers belong to has run."""
        self.read, self.ready = None, {}
