"""What decoding multiplies: a few rows with large weights, which are the same for each token.

On a CPU `x Wᵀ` lays out W anew for each product. oneDNN can lay it out once and for all: half of the time in bfloat16,
and the same bits; in float32 for several rows two fifths, with sums in another order. Where that is not to be had,
`W x` takes the weight as it lies, for one row and in bfloat16, on CPUs on which it is faster. What a CPU does fast is
tried once. In 16 bits what is laid out is taken only where it gives the usual bits: not for one row with torch 2.15,
which multiplies one in a way of its own, and as fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from timeit import repeat
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from loraft.kernels.layer_stream import is_fed
from loraft.kernels.low_rank.lora_linear import modules_of_adapted_parameters

Form = Literal["usual", "as_it_lies", "laid_out", "laid_out_for_several"]
TRIED, TIMES = (4096, 1024), 12
"""The weight that the forms are tried on, `[out, in]`, and how often."""
ROWS = 8
"""How many rows it is tried with beside a single one, and laid out for; the layout takes any number."""
CLEARLY = 0.85
"""What a form may take of the time of the usual one: a clear gain, so that every start chooses alike."""
SMALL = 1 << 14
"""Weights of fewer numbers gain nothing: an adapter's, for example."""


@cache
def fastest_form(dtype: torch.dtype) -> Form:
    """How this CPU multiplies weights of a dtype clearly faster than the usual way, if in 16 bits with its bits."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(TRIED, generator=generator).to(dtype)
    one, several = (torch.randn(rows, TRIED[1], generator=generator).to(dtype) for rows in (1, ROWS))
    with torch.inference_mode():
        usual_one, usual_several = (_seconds(partial(linear, rows, weight)) for rows in (one, several))
        laid = _laid_out(weight)
        if laid is not None:
            laid_one, laid_several = (_seconds(partial(_of_laid_out, rows, laid, None)) for rows in (one, several))
            gains = laid_one + laid_several < CLEARLY * (usual_one + usual_several)
            if gains and _is_allowed(dtype, weight, laid, [*several[:, None], several]):
                return "laid_out"
            if laid_several < CLEARLY * usual_several and _is_allowed(dtype, weight, laid, [several]):
                return "laid_out_for_several"
        if dtype == torch.bfloat16 and _seconds(partial(torch.mv, weight, one[0])) < CLEARLY * usual_one:
            return "as_it_lies"
    return "usual"


def _seconds(product: Any) -> float:
    return min(repeat(product, number=1, repeat=TIMES))


def _is_allowed(dtype: torch.dtype, weight: Tensor, laid: Tensor, tried: Sequence[Tensor]) -> bool:
    if dtype == torch.float32:
        return True
    return all(torch.equal(_of_laid_out(rows, laid, None), linear(rows, weight)) for rows in tried)


def _laid_out(weight: Tensor) -> Tensor | None:
    """A weight `[out, in]` as oneDNN multiplies it; None where this torch, or this CPU, cannot."""
    try:
        laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        _of_laid_out(weight.new_zeros(1, weight.shape[1]), laid, None)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return laid


def _of_laid_out(rows: Tensor, laid: Tensor, bias: Tensor | None) -> Tensor:
    """`[..., in]` to `[..., out]`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, laid, bias, "none", [], "")
    return product


@contextmanager
def patch_decode_linears(
    model: nn.Module,
    dtype: torch.dtype,
    *,
    same_input: Iterable[Sequence[str]] = (),
    room: int = 0,
    keeps: bool = False,
) -> Iterator[None]:
    """Let the linear modules of a model that computes in `dtype` multiply faster; in 16 bits with the same results.

    Modules of other classes are left alone, 4-bit ones among them. Within another one, or beside it, it leaves to that
    what is done already.

    Args:
        model: The model.
        dtype: That of its products.
        same_input: Names of children of one module that are given the same input, in the order of their calls.
        room: The bytes that weights may take which are laid out; where they take more, none are.
        keeps: Keep these for the next time: where a weight has changed until then, it is laid out anew.
    """
    # The weight of these is not what lies in the module, but that with an adapter's update in it.
    parametrized = modules_of_adapted_parameters(model)
    linears = (module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module))
    modules = [module for module in linears if module not in parametrized and not is_fed(module.weight)]
    large = _to_lay_out(modules, dtype, room)
    patched = [module for module in modules if module in large or _gains(module, dtype)]
    for products in _products(model, large, same_input, keeps=keeps):
        for place, module in enumerate(products.modules):
            # The instance's own, in front of its class's: hooks and peft's layers go on as before.
            module.forward = partial(products.output_of, place)  # type: ignore[method-assign]
    for module in patched:
        if module not in large:
            bias = module.bias.to(dtype) if module.bias is not None else None
            module.forward = partial(_multiply, module.weight.to(dtype), bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in patched:
            vars(module).pop("forward", None)


def _gains(module: nn.Linear, dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return False
    if module.weight.dtype != dtype:
        return True
    return dtype == torch.bfloat16 and module.weight.device.type == "cpu" and fastest_form(dtype) == "as_it_lies"


def _to_lay_out(modules: Sequence[nn.Linear], dtype: torch.dtype, room: int) -> set[nn.Linear]:
    """The modules whose weights are laid out: the large ones, if there is room for all of them."""
    found = {
        module
        for module in modules
        if module.weight.device.type == "cpu" and module.weight.dtype == dtype and module.weight.numel() >= SMALL
    }
    taken = sum(module.weight.nbytes for module in found)
    return found if found and taken <= room and fastest_form(dtype).startswith("laid_out") else set()


def _multiply(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """`[..., in]` with a weight `[out, in]` and a bias `[out]`: `[..., out]`."""
    inputs = inputs.to(weight.dtype)
    one_row = bias is None and inputs.numel() == weight.shape[1] and weight.device.type == "cpu"
    if one_row and weight.dtype == torch.bfloat16 and fastest_form(weight.dtype) == "as_it_lies":
        return torch.mv(weight, inputs.flatten()).view(*inputs.shape[:-1], -1)
    return linear(inputs, weight, bias)


@dataclass(frozen=True)
class _Laid:
    """A weight that was laid out, or several below one another, and of what it was made."""

    made_of: tuple[tuple[int, ...], ...]
    weight: Tensor


_kept: WeakKeyDictionary[nn.Module, _Laid] = WeakKeyDictionary()
"""By the first of the modules."""


def _fingerprint(weight: Tensor) -> tuple[int, ...]:
    """What is another one where a weight has changed, in place or by another tensor."""
    whole = weight.detach().contiguous().view(-1)
    words = whole.view(torch.int64) if whole.nbytes % 8 == 0 else whole
    return weight.data_ptr(), weight._version, int(torch.hash_tensor(words).view(torch.int64))


@dataclass(eq=False)
class _LaidOutProducts:
    """Linear modules that are given the same tensor, one after the other: the first computes the products of all.

    Attributes:
        modules: One or several; all of them have a bias, or none.
        read: What the first one was given.
        ready: The outputs for it that are not yet asked for, by the places of the modules.
    """

    modules: Sequence[nn.Linear]
    keeps: bool
    laid: Tensor | None = None
    bias: Tensor | None = None
    read: Tensor | None = None
    ready: dict[int, Tensor] = field(default_factory=dict)

    def output_of(self, place: int, inputs: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]` of one module; what is ready is given for the very tensor it was made from."""
        module = self.modules[place]
        if torch.is_grad_enabled():  # these products have no gradient
            return linear(inputs, module.weight, module.bias)
        if inputs.numel() == module.in_features and fastest_form(module.weight.dtype) == "laid_out_for_several":
            bias = module.bias.to(module.weight.dtype) if module.bias is not None else None
            return _multiply(module.weight, bias, inputs)
        if inputs is not self.read or place not in self.ready:
            product = _of_laid_out(inputs.to(module.weight.dtype), self._laid_out(), self.bias)
            if len(self.modules) == 1:
                return product
            parts = product.split_with_sizes([each.out_features for each in self.modules], -1)
            self.read, self.ready = inputs, dict(enumerate(parts))
        output = self.ready.pop(place)
        if not self.ready:
            self.read = None
        return output

    def _laid_out(self) -> Tensor:
        if self.laid is None:
            self.laid = self._made()
            # Trained biases are float32 on a base of 16 bits, and autocast does not know this product.
            biases = [each.bias.detach().to(each.weight.dtype) for each in self.modules if each.bias is not None]
            self.bias = torch.cat(biases) if biases else None
        return self.laid

    def _made(self) -> Tensor:
        """The weight, laid out: as it was kept, if it is still made of these weights."""
        weights = [module.weight.detach() for module in self.modules]
        kept = _kept.get(self.modules[0])
        made_of = tuple(map(_fingerprint, weights)) if kept is not None or self.keeps else ()
        if kept is not None and kept.made_of == made_of:
            return kept.weight
        laid = _laid_out(torch.cat(weights) if len(weights) > 1 else weights[0])
        assert laid is not None, "it was tried"
        if self.keeps:
            _kept[self.modules[0]] = _Laid(made_of, laid)
        return laid


def _products(
    model: nn.Module, modules: set[nn.Linear], same_input: Iterable[Sequence[str]], *, keeps: bool
) -> list[_LaidOutProducts]:
    """Each of the modules, those that read the same tensor together."""
    found, left = [], dict.fromkeys(module for module in model.modules() if module in modules)
    for parent in model.modules() if modules else ():
        children = dict(parent.named_children())
        for names in same_input:
            layers = [_base_of(children[name]) for name in names if name in children]
            together = [layer for layer in layers if layer in left]
            if 1 < len(together) == len(layers) and len({layer.bias is None for layer in together}) == 1:
                found.append(_LaidOutProducts(together, keeps))
                for layer in together:
                    del left[layer]
    return found + [_LaidOutProducts([module], keeps) for module in left]


def _base_of(module: nn.Module) -> Any:
    """The module itself, or what lies in peft's layer around it."""
    layer: Any = module
    return layer.get_base_layer() if hasattr(module, "get_base_layer") else module
