"""Frozen layers that lie in the host's memory, fed to the device one after the other, each before it is computed.

The matrices of a layer lie in one flat buffer of the host, pinned, so that one copy brings them. The device has two
buffers of the largest layer's size, and layer i is only ever in the one of number i mod 2: its parameters are views of
that one for good. So whatever reads them, autograd included, finds them where they were, as long as the layer is there
while it computes. Of that a hook before its forward takes care, and one on its output's gradient; each also sends for
the layer that comes next: the one above in the forward pass, the one below in the backward pass. A layer that is
computed again for its own backward pass is there already.

Vectors (norms, biases), what is trained and what several modules share stay on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loraft.kernels.transfer import Arrival, CopyStream, on_host, pinned_bytes

SLOTS = 2
"""Buffers on the device: of the layer that computes, and of the one that is on its way."""
ALIGNED = 512
"""Bytes that each tensor in a buffer begins at a multiple of, as torch's own allocations do."""


@dataclass(frozen=True, eq=False)
class _Fed:
    """A tensor of a layer that is fed.

    Attributes:
        begin: Where it begins in the buffers, in bytes.
        put: Takes the view that stands in its place.
    """

    tensor: Tensor
    begin: int
    put: Callable[[Tensor], None]

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.begin + self.tensor.numel() * self.tensor.element_size()

    def within(self, buffer: Tensor) -> Tensor:
        """Its place in a buffer, as a tensor that may be overwritten unseen by autograd."""
        return buffer[self.begin : self.end].view(self.tensor.dtype).view(self.tensor.shape).data


class LayerStream:
    """Layers of a model in the host's memory, and the two on the device."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], device: torch.device) -> None:
        """Bring a model whose weights are on the host to `device`, all but the matrices of `layers`.

        Args:
            model: The model, frozen.
            layers: In the order of their calls.
            device: Where it computes.
        """
        shared = {weight for weight, uses in uses_of_parameters(model).items() if uses > 1}
        taken = [list(_take(layer, shared)) for layer in layers]
        nn.Module.to(model, device)
        self._stream = CopyStream(device)
        laid = [_laid(pieces) for pieces in taken]
        sizes = [max((piece.end for piece in pieces), default=0) for pieces in laid]
        self._hosts: list[Tensor] = []
        self._slots = [torch.empty(max(sizes, default=0), dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._inside: list[int | None] = [None] * SLOTS
        self._arrivals: list[Arrival] = [None] * SLOTS
        self._keeps_graph = [False] * len(layers)
        self._going_back: int | None = None
        self.layers = tuple(layers)
        for number, (layer, pieces) in enumerate(zip(layers, laid, strict=True)):
            self._hosts.append(on_host(sizes[number], device))
            for piece in pieces:
                piece.within(self._hosts[number]).copy_(piece.tensor)
                piece.put(piece.within(self._slots[number % SLOTS]))
            pieces.clear()
            taken[number].clear()  # the host holds one layer twice at most
            layer.register_forward_pre_hook(partial(self._forward, number))
            layer.register_forward_hook(partial(self._computed, number))

    @property
    def host_bytes(self) -> int:
        """The bytes that the layers take of the host's memory."""
        return sum(pinned_bytes(len(host)) for host in self._hosts)

    def bring(self, layer: nn.Module) -> None:
        """Have the weights of a module be on the device, if it is one of the layers."""
        if layer in self.layers:
            self._need(self.layers.index(layer), None)

    def _forward(self, number: int, *_: Any) -> None:
        """A layer is about to compute."""
        if number == self._going_back and self._inside[number % SLOTS] == number:
            return
        self._going_back = None
        above = number + 1
        if above == len(self.layers):  # with a graph it goes back from here on, else from the first one on again
            self._need(number, None if torch.is_grad_enabled() else 0)
        else:
            self._need(number, above)

    def _computed(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        """A layer has computed; its backward pass begins with the gradient of its output."""
        given = output if isinstance(output, tuple | list) else (output,)
        states = next((each for each in given if isinstance(each, Tensor) and each.requires_grad), None)
        self._keeps_graph[number] = states is not None
        if states is not None:
            states.register_hook(partial(self._backward, number))  # type: ignore[no-untyped-call]

    def _backward(self, number: int, _: Tensor) -> None:
        """A layer is about to go backward, computed again before where activations are not kept."""
        self._going_back = number
        below = number - 1
        self._need(number, below if number and self._keeps_graph[below] else 0)

    def _need(self, number: int, then: int | None) -> None:
        self._send_for(number)
        self._stream.wait(self._arrivals[number % SLOTS])
        if then is not None and then % SLOTS != number % SLOTS:
            self._send_for(then)

    def _send_for(self, number: int) -> None:
        slot, host = number % SLOTS, self._hosts[number]
        if self._inside[slot] != number:
            self._arrivals[slot] = self._stream.copy(self._slots[slot][: len(host)], host)
            self._inside[slot] = number


def uses_of_parameters(model: nn.Module) -> Counter[nn.Parameter]:
    """How often a model has each parameter: in a module by itself, or in one that stands in several places."""
    modules = (module for _, module in model.named_modules(remove_duplicate=False))
    return Counter(weight for module in modules for weight in module._parameters.values() if weight is not None)


def _take(layer: nn.Module, shared: set[nn.Parameter]) -> Iterator[tuple[Tensor, Callable[[Tensor], None]]]:
    """Take the matrices of a layer out of it: each tensor, the constants of 4-bit ones too, and what puts it back."""
    for module in layer.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or weight.dim() < 2 or weight in shared:
                continue
            module._parameters[name] = None
            yield weight.data, partial(_put, module, name, weight)
            state: Any = getattr(weight, "quant_state", None)
            if state is not None:
                yield state.absmax, partial(setattr, state, "absmax")
            if state is not None and state.nested:
                yield state.state2.absmax, partial(setattr, state.state2, "absmax")


def _put(module: nn.Module, name: str, weight: nn.Parameter, data: Tensor) -> None:
    """Give a module a parameter like `weight`, with other data."""
    state: Any = getattr(weight, "quant_state", None)
    if state is not None:  # what is not fed
        for part in (state, state.state2) if state.nested else (state,):
            part.code = part.code.to(data.device)
        state.offset = None if state.offset is None else state.offset.to(data.device)
    kind = type(weight)
    plain = kind is nn.Parameter
    made: Any = nn.Parameter(data, requires_grad=False) if plain else torch.Tensor._make_subclass(kind, data, False)
    vars(made).update(vars(weight))
    module._parameters[name] = made


def _laid(taken: Sequence[tuple[Tensor, Callable[[Tensor], None]]]) -> list[_Fed]:
    """The tensors of a layer, one behind the other."""
    pieces: list[_Fed] = []
    for tensor, put in taken:
        begin = -(-pieces[-1].end // ALIGNED) * ALIGNED if pieces else 0
        pieces.append(_Fed(tensor, begin, put))
    return pieces
