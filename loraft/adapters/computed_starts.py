"""Starts of an adapter that are computed: from the base's weights (PiSSA, OLoRA, LoftQ), from what is read (EVA).

Whatever it is, the base stays as it is, and what is saved is a plain update for it. With EVA A begins with the first
right singular vectors of the inputs of its module, at the tokens that are learned, and B at zero; every module has the
rank that the config says.

Source: Meng et al. 2024, PiSSA (https://arxiv.org/abs/2404.02948), equations 2 to 4; Büyükakyüz 2024, OLoRA
(https://arxiv.org/abs/2406.01775), algorithm 1; Li et al. 2023, LoftQ (https://arxiv.org/abs/2310.08659), algorithm 1
with one step, which leaves the quantized base as it is; Paischer et al. 2024, EVA (https://arxiv.org/abs/2410.07170),
algorithm 1 with ρ = 1, by peft's `get_eva_state_dict`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer, eva
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraft.adapters.lora_factors import ADAPTER_NAME
from loraft.config.sections import FROM_WEIGHTS
from loraft.errors import AdapterError, ModelError
from loraft.kernels.linear_weights import unpacked
from loraft.kernels.low_rank.dora import row_lengths
from loraft.kernels.low_rank.started_factor import begin_with
from loraft.models.load_model import LoadedModel
from loraft.models.modules import modules_of
from loraft.models.safetensors_index import header_of, mapped_tensor, read_headers
from loraft.tasks.batches import Batch
from loraft.tokenization.examples import IGNORED, Example

MOST_BATCHES = 2000
"""How many batches are read at most until the directions no longer turn."""
KEY = "lora.init"
EXACT = 1024
"""Up to this many rows or columns a weight is decomposed whole; of a larger one the first directions are estimated."""
OVERSAMPLED, POWERS = 16, 8


Whole = Callable[[nn.Module], contextlib.AbstractContextManager[object]]
"""What is entered while something looks at the weights of a module, of which a rank may have a part else."""


@contextlib.contextmanager
def magnitudes_of(whole: Whole) -> Iterator[None]:
    """Have the magnitudes that DoRA begins with be those of weights that are `whole` while they are looked at.

    Those of linear modules are the lengths of the weight's rows in float32, as updates begin at zero; peft rounds them
    to the weight's dtype, and copies a weight in 4 bits.
    """
    layers: Any = DoraLinearLayer
    real = layers.update_layer

    def begin(layer: Any, *, base_layer: nn.Module, **given: Any) -> None:
        with whole(base_layer):
            if type(layer) is not DoraLinearLayer:
                real(layer, base_layer=base_layer, **given)
                return
            weight = transpose(dequantize_module_weight(base_layer), layer.fan_in_fan_out)
            layer.weight = nn.Parameter(row_lengths(weight))

    layers.update_layer = begin
    try:
        yield
    finally:
        layers.update_layer = real


def begin_from_weights(model: PeftModel, modules: Iterable[str], start: str, seed: int, loaded: LoadedModel) -> None:
    """Begin the update of each module with directions of its weight, or with what 4 bits left out of it.

    Raises:
        ModelError: The base's files do not hold the weight that was quantized.
    """
    generator = torch.Generator().manual_seed(seed)
    base = model.get_base_model()
    for name in modules:
        layer: Any = base.get_submodule(name)
        inner, rank, scale = layer.get_base_layer(), layer.r[ADAPTER_NAME], layer.scaling[ADAPTER_NAME]
        weight = unpacked(inner).float()
        if start == "loftq":
            read_as = getattr(inner, "source_cls", type(inner))  # what transformers puts a quantized module in place of
            original = _original(name, loaded, transposed=issubclass(read_as, Conv1D)).to(weight)
            a, b = principal(original - weight, rank, scale, generator)
            layer.lora_A[ADAPTER_NAME].weight.data.copy_(a)
            layer.lora_B[ADAPTER_NAME].weight.data.copy_(b)
            continue
        a, b = principal(weight, rank, scale, generator) if start == "pissa" else orthogonal(weight, rank)
        begin_with(layer.lora_A[ADAPTER_NAME], a, a, along=0)
        begin_with(layer.lora_B[ADAPTER_NAME], b, -b, along=1)


def principal(weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A `[r, in]` and B `[out, r]` with scale · B A the best approximation of a weight `[out, in]` of that rank."""
    if min(weight.shape) <= EXACT:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values, right = first_directions(weight, rank, generator)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def orthogonal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A `[r, in]` and B `[out, r]`: the first rows of R and the first columns of Q of a weight `[out, in]`."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def first_directions(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values of a weight `[out, in]` and their directions: `[out, k]`, `[k]`, `[k, in]`, k ≥ r.

    Source: Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1 (https://arxiv.org/abs/0909.4061).
    """
    count = min(rank + OVERSAMPLED, *weight.shape)
    drawn = torch.randn(weight.shape[1], count, generator=generator).to(weight)
    basis, _ = torch.linalg.qr(weight @ drawn)
    for _ in range(POWERS):
        basis, _ = torch.linalg.qr(weight.T @ basis)
        basis, _ = torch.linalg.qr(weight @ basis)
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ left, values, right


def _original(name: str, loaded: LoadedModel, *, transposed: bool) -> Tensor:
    """The weight `[out, in]` of a module before it was quantized, in the dtype that it was quantized from."""
    header = header_of(f"{name}.weight", read_headers(loaded.folder))
    if header is None:
        message = f"the files of the base do not hold the weight of {name} as it was before it was quantized"
        remedy = "Leave lora.init at default, or take pissa."
        raise ModelError(message, where=loaded.name, key=KEY, remedy=remedy)
    weight = mapped_tensor(header).to(loaded.placement.dtype)
    return weight.T if transposed else weight


def as_plain(config: LoraConfig, start: str) -> None:
    """Let a config say what is saved: an update that begins at the weights has twice the rank, and the same scale."""
    if start not in FROM_WEIGHTS:
        return
    grows = math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= grows  # type: ignore[assignment]  # peft takes any number
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: grows * alpha for name, alpha in (config.alpha_pattern or {}).items()}


def learned_from(example: Example) -> int:
    """The tokens of an example that directions are made of, by the stack that has fewer."""
    return min(len(example.input_ids), example.trained) if example.target_tokens else example.trained


def require_tokens(least: int, examples: Iterable[Example]) -> None:
    """Refuse `lora.init: eva` where there are fewer tokens than the directions that the highest rank needs.

    Raises:
        AdapterError: There are.
    """
    if sum(map(learned_from, examples)) < least:
        message = f"eva begins with {least} directions of what is learned, and the rows have fewer tokens than that"
        raise AdapterError(message, key=KEY, remedy="Take a lower lora.r, more rows, or another lora.init.")


@dataclass
class _Batches:
    """Batches that are read in turns, as long as the directions turn."""

    batches: Sequence[Batch]
    read: int = 0

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
    layers = modules_of(model, LoraLayer)
    rank = max(layer.r[ADAPTER_NAME] for layer in layers.values())
    asked = LoraConfig(r=rank, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    # It draws from a seed of its own, and says what it leaves out on the standard output.
    with torch.random.fork_rng(), warnings.catch_warnings(), contextlib.redirect_stdout(None), _without_rows():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        found: dict[str, Tensor] = eva.get_eva_state_dict(
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


@contextlib.contextmanager
def _without_rows() -> Iterator[None]:
    """Have peft pass over rows of embeddings and heads that are trained, which it takes for modules with an A."""
    peft_eva: Any = eva
    real = peft_eva.UNSUPPORTED_LORA_MODULES
    peft_eva.UNSUPPORTED_LORA_MODULES = (*real, TrainableTokensLayer)
    try:
        yield
    finally:
        peft_eva.UNSUPPORTED_LORA_MODULES = real


def _learned(given: Any, batch: Batch, name: str) -> Tensor:
    """`[tokens, in]`: what a module reads at the tokens that decide a loss, or at all but padding."""
    read: Tensor = given[0] if isinstance(given, tuple) else given
    if batch.labels.dim() == 2 and read.shape[:-1] == batch.labels.shape:  # what a decoder says of a source
        return read[batch.labels != IGNORED]
    if read.shape[:-1] != batch.input_ids.shape:
        message = f"eva: {name.removeprefix('base_model.model.')} does not read every token of a batch in its place"
        raise AdapterError(message, key=KEY, remedy="Leave it out of lora.target_modules, or take another lora.init.")
    if batch.attention_mask is not None:
        return read[batch.attention_mask.bool()]
    assert batch.target_positions is not None, "collate_texts tells where targets are"
    return read.flatten(0, -2)[batch.target_positions]
