"""A feed-forward part computed some tokens at a time, so that what is inside it never stands for a whole long row.

Each token goes through a feed-forward part by itself: tiles along time give the same outputs. The backward pass
computes a tile anew and takes it back at once. In a layer that is recomputed (gradient checkpointing) that is the
recomputation: two nodes of the graph, of which the first keeps the input and the second computes, let torch stop it
before the second. Gradients of the adapter are summed tile by tile, in float32: the same up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TILE = 4096
"""Tokens of a tile: enough for a GPU's products, and for 4-bit weights to be dequantized rarely."""


def tile_mlps(modules: Iterable[nn.Module], tile: int = TILE) -> None:
    """Let each of these modules, which compute token by token, compute `tile` tokens at a time."""
    for module in modules:
        tiled = _Tiled(module, tile)
        module.forward = tiled.forward


class _Tiled:
    """A module's own forward, and when it is given tiles.

    Attributes:
        inside: It is being given a tile: the module is called as a whole, hooks and all.
    """

    def __init__(self, module: nn.Module, tile: int) -> None:
        self.module, self.tile, self.plain, self.inside = module, tile, module.forward, False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        tokens = x.numel() // x.shape[-1]
        if self.inside or tokens <= self.tile:
            out: Tensor = self.plain(x)
            return out
        if not torch.is_grad_enabled():
            return self.outputs(x)
        trained = [weight for weight in self.module.parameters() if weight.requires_grad]
        kept = _InputOfTiles.apply(x, self, *trained)  # type: ignore[no-untyped-call]
        computed: Tensor = _OutputOfTiles.apply(kept, x.detach(), self)  # type: ignore[no-untyped-call]
        return computed

    def tiles(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[..., hidden]` as views `[1, tile, hidden]`."""
        return torch.split(x.reshape(1, -1, x.shape[-1]), self.tile, 1)

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs for all tiles, in one tensor."""
        out: Tensor | None = None
        at = 0
        for tile in self.tiles(x):
            made = self.of_tile(tile)
            if out is None:
                out = made.new_empty(*x.shape[:-1], made.shape[-1])
            out.view(-1, made.shape[-1])[at : at + made.shape[1]] = made[0]
            at += made.shape[1]
        assert out is not None, "there are more tokens than a tile has"
        return out

    def of_tile(self, tile: Tensor) -> Tensor:
        """The output for one tile, by the module as a whole."""
        self.inside = True
        try:
            out: Tensor = self.module(tile)
            return out
        finally:
            self.inside = False


class _InputOfTiles(torch.autograd.Function):
    """Keeps the input, gives a placeholder of the output's shape that takes no memory, and has the whole backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiled: _Tiled, *trained: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tiled, ctx.trained = tiled, trained
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.random = torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if device == "cuda" else None
        return x.new_empty(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), tiled, trained = ctx.saved_tensors, ctx.tiled, ctx.trained
        device, dtype, on = ctx.autocast
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_trained = [torch.zeros_like(weight) for weight in trained]
        at = 0
        with _drawing_again(x.device, ctx.random):
            for tile, grad in zip(tiled.tiles(x), tiled.tiles(grads[0]), strict=True):
                given = tile.detach().requires_grad_(d_x is not None)
                with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=on):
                    made = tiled.of_tile(given)
                wanted = [*trained, *([given] if d_x is not None else [])]
                found = list(torch.autograd.grad(made, wanted, grad.to(made.dtype), allow_unused=True))
                del made
                if d_x is not None:
                    d_x.view(-1, x.shape[-1])[at : at + tile.shape[1]] = found.pop()[0]
                for total, part in zip(of_trained, found, strict=True):
                    if part is not None:
                        total.add_(part)
                at += tile.shape[1]
        return d_x, None, *of_trained


@contextmanager
def _drawing_again(device: torch.device, random: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Let what is drawn be drawn as it was from this state, of the CPU and of a GPU."""
    of_cpu, of_gpu = random
    with torch.random.fork_rng([] if of_gpu is None else [device]):
        torch.set_rng_state(of_cpu)
        if of_gpu is not None:
            torch.cuda.set_rng_state(of_gpu, device)
        yield


class _OutputOfTiles(torch.autograd.Function):
    """Computes the output in the place of the placeholder; its gradient is the placeholder's."""

    @staticmethod
    def forward(_ctx: Any, _kept: Tensor, x: Tensor, tiled: _Tiled) -> Tensor:
        return tiled.outputs(x)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None
