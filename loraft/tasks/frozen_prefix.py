"""What the frozen layers below the lowest trained one give, computed once for each batch and then read from disk.

It is a function of the batch as a whole, not of a row: kernels choose their blocks by the shape of a batch, so that a
row in other company differs in its last bits. So whole batches are kept, by their content, and a run keeps its batches
(`data.shuffle: batches`). The model's own forward runs on: embeddings, positions and masks are made as ever, the layers
below hand on what they are given, and the last of them gives what was kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from loraft.config.schema import RunConfig
from loraft.errors import ModelError
from loraft.kernels.shared_prefix import shared_prefix
from loraft.kernels.transfer import to_device
from loraft.models.registry import ModelSpec
from loraft.tasks.batches import Batch, BatchLayout
from loraft.tasks.loss import TaskLoss

KEY = "training.cache_frozen_prefix"
STATES = "states"
DIGEST = hashlib.sha256().digest_size


class FrozenPrefix:
    """The kept output of the frozen layers of one model.

    Attributes:
        computed: The batches that went through the frozen layers.
        read: The batches that did not.
    """

    def __init__(self, layers: Sequence[nn.Module], folder: Path, made_by: str) -> None:
        """Keep in `folder` what `layers`, the frozen ones from the first on, give.

        `made_by` names all else that decides their output; what was kept under another name is removed.
        """
        self._layers, self._folder = layers, folder / made_by[:16]
        self.computed, self.read = 0, 0
        self._undo = ExitStack()
        for stale in folder.iterdir() if folder.is_dir() else ():
            if stale != self._folder:
                shutil.rmtree(stale, ignore_errors=True)

    def attach(self, loss: TaskLoss) -> None:
        """Serve every batch that `loss` is called with."""
        loss.register_forward_pre_hook(self._begin)
        loss.register_forward_hook(self._end, always_call=True)

    def _begin(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        batch: Batch = given[0]
        place = self._folder / f"{content_of(batch)}.states"
        kept = _kept(place)
        if kept is None:
            keep = self._layers[-1].register_forward_hook(lambda _, __, output: self._keep(place, output))
            self._undo.callback(keep.remove)
            return
        self.read += 1
        states, others = to_device(kept[0], batch.input_ids.device), kept[1]
        for layer in self._layers[:-1]:
            self._undo.callback(_instead(layer, lambda hidden_states, *_, **__: _output(hidden_states, others)))
        self._undo.callback(_instead(self._layers[-1], lambda *_, **__: _output(states, others)))

    def _end(self, *_: object) -> None:
        self._undo.close()

    def _keep(self, place: Path, output: object) -> None:
        states, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        if not isinstance(states, Tensor) or states.requires_grad:
            raise ModelError("the layers of this model hand on more than frozen states", key=KEY, remedy="Write false.")
        self.computed += 1
        named = STATES if others is None else f"{STATES}.{len(others)}"
        written = save({named: states.detach().cpu().contiguous()})
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.{os.getpid()}")
        with beside.open("wb") as file:  # not flushed: what a crash leaves half is told by its sha256
            file.write(hashlib.sha256(written).digest())
            file.write(written)
        beside.replace(place)


def _output(states: Tensor, others: int | None) -> Tensor | tuple[Tensor | None, ...]:
    """States as a layer gives them: alone, or with so many others that this run does not ask for."""
    return states if others is None else (states, *[None] * others)


def _instead(layer: nn.Module, forward: Callable[..., object]) -> Callable[[], None]:
    """Let a layer compute something else; what comes back ends that."""
    own = vars(layer).get("forward")
    layer.forward = forward

    def end() -> None:
        if own is None:
            del layer.forward
        else:
            layer.forward = own

    return end


def _kept(place: Path) -> tuple[Tensor, int | None] | None:
    """The states that were kept there, and how many others stood beside them in a tuple.

    None where there are none, or other bytes than were written.
    """
    try:
        read = place.read_bytes()
    except FileNotFoundError:
        return None
    written = memoryview(read)[DIGEST:]
    if hashlib.sha256(written).digest() != read[:DIGEST]:
        return None
    ((name, states),) = load(bytes(written)).items()
    _, in_tuple, others = name.partition(".")
    return states.clone(), int(others) if in_tuple else None  # a copy is aligned as a tensor's own memory


def content_of(batch: Batch) -> str:
    """The sha256 of all that a model reads of a batch, where the host has it."""
    laid = batch.host or batch
    digest = hashlib.sha256(f"{laid.row_lengths} {laid.shared_prefix}".encode())
    for tensor in (laid.input_ids, laid.position_ids, laid.attention_mask, laid.real):
        if tensor is not None:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def kept_positions(batches: Iterable[Sequence[list[int]]], layout: BatchLayout) -> int:
    """The positions of batches, given by the tokens of their rows, padding counted."""
    return sum(_positions(rows, layout) for rows in batches)


def _positions(rows: Sequence[list[int]], layout: BatchLayout) -> int:
    return layout.positions([len(row) for row in rows], shared_prefix(rows) if layout.shares else 0)


def why_not_kept(config: RunConfig, family: ModelSpec, frozen: int, outside: Sequence[str], noise: str | None) -> str:
    """Why nothing can be kept of a run; an empty text where it can.

    Args:
        config: The run.
        family: The row of its model.
        frozen: The layers below the lowest trained one.
        outside: What is trained outside of the layers.
        noise: What of the model's config has it drop or shake numbers while it trains.
    """
    if family.plain or family.alone or family.kind != "decoder":
        return f"the layers of type {family.model_type} are not known well enough to be left out"
    if outside:
        return f"{outside[0]} is trained, and lies outside of the layers"
    if not frozen:
        layers = "method is full" if config.method == "full" else f"lora.layers is {config.lora.layers}"
        return f"no layer below the trained ones is frozen ({layers})"
    return f"{noise} of the model's config draws anew each time" if noise else ""
