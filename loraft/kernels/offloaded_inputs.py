"""Gradient checkpointing that keeps what goes into each layer in the host's memory until the backward pass.

Each is copied there while its layer and the next ones compute, and back while the layer above it goes backward. The
last one never leaves. On the device there are two at a time, whatever the number of layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from loraft.kernels.transfer import Arrival, CopyStream, on_host


def keep_inputs_on_host(model: nn.Module, device: torch.device) -> None:
    """Let the layers of a model whose checkpointing is on keep what goes into them on the host."""
    inputs = KeptInputs(device)
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = inputs.checkpoint  # type: ignore[assignment]


@dataclass(eq=False)
class _Kept:
    """What went into a layer.

    Attributes:
        buffer: Where it lies on the host.
        arrival: Tells that the copy that is on its way is done.
        device_tensor: What is there of it on the device: while it is copied there, and once it is on its way back.
        below: What went into the layer before, in the same forward pass.
    """

    buffer: Tensor
    shape: torch.Size
    dtype: torch.dtype
    arrival: Arrival
    device_tensor: Tensor | None
    below: _Kept | None

    @property
    def on_host(self) -> Tensor:
        """`[…]`: the buffer's part that holds it."""
        size = self.shape.numel() * self.dtype.itemsize
        return self.buffer[:size].view(self.dtype).view(self.shape)


class KeptInputs:
    """What went into the layers of a model, on the host, in buffers that are used again and again.

    All copies run one after the other, so that a buffer whose content is on its way back can be taken anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, CopyStream(device)
        self._free: list[Tensor] = []
        self._last: weakref.ref[_Kept] | None = None

    def checkpoint(self, function: Callable[..., Any], *given: Any) -> Any:
        """`torch.utils.checkpoint`, of a layer that is given its hidden states first: these are kept on the host."""
        first = given[0] if given else None
        place = (first.data_ptr(), first.shape) if isinstance(first, Tensor) else None
        del first  # the graph keeps `keep`, and must not keep the tensor with it

        def keep(tensor: Tensor) -> Tensor | _Kept:
            return self._keep(tensor) if (tensor.data_ptr(), tensor.shape) == place else tensor

        with saved_tensors_hooks(keep, self._give):  # inside, checkpoint has its own
            return checkpoint(function, *given, use_reentrant=False)

    def _keep(self, states: Tensor) -> _Kept:
        """Send hidden states to the host; those before have left, and their memory on the device is free."""
        below = self._last() if self._last is not None else None
        if below is not None:
            self._stream.wait(below.arrival)
            below.device_tensor = None
        size = states.numel() * states.element_size()
        kept = _Kept(self._buffer(size), states.shape, states.dtype, None, states, below)
        kept.arrival = self._stream.copy(kept.on_host, states)
        weakref.finalize(kept, self._free.append, kept.buffer)
        self._last = weakref.ref(kept)
        return kept

    def _buffer(self, size: int) -> Tensor:
        """The smallest free buffer that is large enough, or a new one."""
        fitting = [number for number, buffer in enumerate(self._free) if len(buffer) >= size]
        if not fitting:
            return on_host(size, self._device)
        return self._free.pop(min(fitting, key=lambda number: len(self._free[number])))

    def _give(self, kept: Tensor | _Kept) -> Tensor:
        """What went into a layer, on the device; that of the layer below is sent for."""
        if isinstance(kept, Tensor):
            return kept
        self._send_for(kept)
        self._stream.wait(kept.arrival)
        states, kept.device_tensor = kept.device_tensor, None
        assert states is not None, "it was sent for"
        if kept.below is not None:
            self._send_for(kept.below)
        return states

    def _send_for(self, kept: _Kept) -> None:
        if kept.device_tensor is None:
            kept.device_tensor = torch.empty(kept.shape, dtype=kept.dtype, device=self._device)
            kept.arrival = self._stream.copy(kept.device_tensor, kept.on_host)
