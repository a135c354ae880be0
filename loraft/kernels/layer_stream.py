"""Frozen layers that lie in the host's memory, fed to the device one after the other, each before it is computed.

The matrices of a layer lie in one flat buffer of the host, pinned, so that one copy brings them. The device has two
buffers of the largest layer's size, and layer i is only ever in the one of number i mod 2: its parameters are views of
that one for good. So whatever reads them, autograd included, finds them where they were, as long as the layer is there
while it computes. Of that a hook before its forward takes care, and one on its output's gradient; each also sends for
the layer that comes next: the one above in the forward pass, the one below in the backward pass. A layer that is
computed again for its own backward pass is there already.

Embeddings and a head share a buffer of their own, since one is done before the other begins. Vectors (norms, biases),
what is trained and what several modules share stay on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loraft.kernels.transfer import Arrival, CopyStream, on_host, pinned_bytes

Fed = Literal["layers", "ends"]
"""What is fed to the device: the layers, or the embeddings and the head besides."""
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


class _Lane:
    """Modules on the host, and buffers of the device: module i is only ever in the one of number i mod their number."""

    def __init__(self, modules: Sequence[nn.Module], slots: int, shared: set[nn.Parameter]) -> None:
        """Take the matrices of the modules out of them, until they are laid."""
        self._laid = [_laid(list(_take(module, shared))) for module in modules]
        self._inside: list[int | None] = [None] * slots
        self._arrivals: list[Arrival] = [None] * slots
        self.hosts: list[Tensor] = []

    def lay(self, device: torch.device, stream: CopyStream) -> None:
        """Lay the matrices into buffers of the host, and put views of those of the device in their places."""
        sizes = [max((piece.end for piece in pieces), default=0) for pieces in self._laid]
        largest = max(sizes, default=0)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in self._inside]
        self._stream = stream
        for number, pieces in enumerate(self._laid):
            host, slot = on_host(sizes[number], device), self._slots[number % len(self._slots)]
            for piece in pieces:
                piece.within(host).copy_(piece.tensor)
                piece.put(piece.within(slot))
            pieces.clear()  # the host holds one module twice at most
            self.hosts.append(host)

    def send_for(self, number: int) -> None:
        """Have a module be brought, once what was launched so far is done."""
        slot, host = number % len(self._slots), self.hosts[number]
        if self._inside[slot] != number:
            self._arrivals[slot] = self._stream.copy(self._slots[slot][: len(host)], host)
            self._inside[slot] = number

    def need(self, number: int) -> None:
        """Have what is launched from here on find a module on the device."""
        self.send_for(number)
        self._stream.wait(self._arrivals[number % len(self._slots)])

    def holds(self, number: int) -> bool:
        """Whether a module is on the device, or on its way."""
        return self._inside[number % len(self._slots)] == number

    def apart(self, number: int, other: int) -> bool:
        """Whether two modules can be on the device at once."""
        return (number - other) % len(self._slots) != 0


class LayerStream:
    """Layers of a model in the host's memory, of which two are on the device; its embeddings and its head, likewise.

    Of these one is there at a time: the embeddings until they are read, then the head until its loss has a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        device: torch.device,
        ends: tuple[nn.Module, nn.Module, nn.Module] | None = None,
    ) -> None:
        """Bring a model whose weights are on the host to `device`, all but the matrices of `layers`.

        Args:
            model: The model, frozen.
            layers: In the order of their calls.
            device: Where it computes.
            ends: The embeddings and the head where these are fed too, and the module whose output the head reads.
        """
        shared = {weight for weight, uses in uses_of_parameters(model).items() if uses > 1}
        self.layers, self._modules_of_ends = tuple(layers), () if ends is None else ends[:2]
        self._fed, self._ends = _Lane(self.layers, SLOTS, shared), _Lane(self._modules_of_ends, 1, shared)
        nn.Module.to(model, device)
        stream = CopyStream(device)
        for lane in (self._fed, self._ends):
            lane.lay(device, stream)
        self._keeps_graph = [False] * len(layers)
        self._going_back: int | None = None
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._forward, number))
            layer.register_forward_hook(partial(self._computed, number))
        if ends is not None:
            embeddings, _, states = ends
            embeddings.register_forward_pre_hook(lambda *_: self._ends.need(0))
            embeddings.register_forward_hook(lambda *_: self._ends.send_for(1))
            states.register_forward_hook(lambda *_: self._ends.need(1))

    @property
    def host_bytes(self) -> int:
        """The bytes that they take of the host's memory."""
        return sum(pinned_bytes(len(host)) for lane in (self._fed, self._ends) for host in lane.hosts)

    def bring(self, module: nn.Module) -> None:
        """Have the weights of a module be on the device, if it is one of those that are fed."""
        for lane, modules in ((self._fed, self.layers), (self._ends, self._modules_of_ends)):
            if module in modules:
                lane.need(modules.index(module))

    def _forward(self, number: int, *_: Any) -> None:
        """A layer is about to compute."""
        if number == self._going_back and self._fed.holds(number):
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
        if number + 1 == len(self.layers) and self._modules_of_ends:
            self._ends.send_for(0)

    def _need(self, number: int, then: int | None) -> None:
        self._fed.need(number)
        if then is not None and self._fed.apart(then, number):
            self._fed.send_for(then)


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
    vars(made).update(vars(weight), is_fed=True)
    module._parameters[name] = made


def is_fed(weight: Tensor) -> bool:
    """Whether a weight is there only while its module computes: a copy that is made before is none of it."""
    return getattr(weight, "is_fed", False)


def _laid(taken: Sequence[tuple[Tensor, Callable[[Tensor], None]]]) -> list[_Fed]:
    """The tensors of a layer, one behind the other."""
    pieces: list[_Fed] = []
    for tensor, put in taken:
        begin = -(-pieces[-1].end // ALIGNED) * ALIGNED if pieces else 0
        pieces.append(_Fed(tensor, begin, put))
    return pieces
