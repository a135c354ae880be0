"""A start that is computed from what the adapted modules read: EVA.

A begins with the first right singular vectors of the inputs of its module, at the tokens that are learned, and B at
zero: the base is left as it is, and every module has the rank that the config says.

Source: Paischer et al. 2024, EVA (https://arxiv.org/abs/2410.07170), algorithm 1 with ρ = 1, by peft's
`get_eva_state_dict`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor, nn

from loraft.adapters.lora_factors import ADAPTER_NAME
from loraft.errors import AdapterError
from loraft.tasks.loss import Batch

MOST_BATCHES = 2000
"""How many batches are read at most until the directions no longer turn."""
KEY = "lora.init"


@dataclass
class _Batches:
    """Batches that are read in turns, as long as the directions turn."""

    batches: Sequence[Batch]
    read: int = field(default=0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.read += 1
            if self.read > MOST_BATCHES:
                message = f"eva: the directions of what modules read still turn after {MOST_BATCHES} batches"
                raise AdapterError(message, key=KEY, remedy="Take a lower lora.r, more rows, or another lora.init.")
            yield batch


def begin_from_data(model: nn.Module, batches: Sequence[Batch], forward: Callable[[Batch], object]) -> None:
    """Begin every A with the first directions of what its module reads in the batches; B stays zero.

    The global random state is left as it was.

    Raises:
        AdapterError: A module reads something else than a token's numbers a row, or its directions do not settle.
    """
    assert isinstance(model, PeftModel), "a model without an adapter has none to begin"
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    rank = max(layer.r[ADAPTER_NAME] for layer in layers.values())
    asked = LoraConfig(r=rank, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    # It draws from a seed of its own, and says what it leaves out on the standard output.
    with torch.random.fork_rng(), warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        found: dict[str, Tensor] = get_eva_state_dict(
            model,
            _Batches(batches),
            peft_config=asked,
            forward_fn=lambda _, batch: forward(batch),
            prepare_model_inputs_fn=lambda batch, _: batch,
            prepare_layer_inputs_fn=_learned,
            show_progress_bar=False,
        )
    for name, directions in found.items():
        layer: Any = layers[name]
        layer.lora_A[ADAPTER_NAME].weight.data.copy_(directions[: layer.r[ADAPTER_NAME]])


def _learned(given: Any, batch: Batch, name: str) -> Tensor:
    """`[tokens, in]`: what a module reads at the tokens that decide a loss, or at all but padding."""
    read: Tensor = given[0] if isinstance(given, tuple) else given
    if read.shape[:-1] != batch.input_ids.shape:
        message = f"eva: {name.removeprefix('base_model.model.')} does not read every token of a batch in its place"
        raise AdapterError(message, key=KEY, remedy="Leave it out of lora.target_modules, or take another lora.init.")
    rows = read.reshape(-1, read.shape[-1])
    if batch.target_positions is not None:
        return rows[batch.target_positions]
    return rows if batch.attention_mask is None else rows[batch.attention_mask.flatten().bool()]
