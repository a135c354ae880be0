"""The effect of adapters: switched on and off, summed with weights, and folded into what they change.

Folding is computed in float32, a few rows at a time: the memory it takes does not depend on the size of the weight.

    LoRA   W' = W + Σ s · B A            (s = weight · alpha / r, with rsLoRA weight · alpha / √r)
    DoRA   W' = m ⊙ (W + s · B A) / ‖W + s · B A‖, the norm of each output's row

Source: Hu et al. 2021 (https://arxiv.org/abs/2106.09685), equation 3; Kalajdzievski 2023, rsLoRA
(https://arxiv.org/abs/2312.03732); Liu et al. 2024, DoRA (https://arxiv.org/abs/2402.09353), equation 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.adapted_parameters import parameter_factors
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.lora_factors import LoraFactors, in_peft
from loraft.adapters.targets import TargetModules
from loraft.adapters.trained_biases import biases_of, let_biases_act
from loraft.config.sections import FROM_WEIGHTS, LoraSection
from loraft.errors import AdapterError
from loraft.kernels.linear_weights import is_quantized, unpacked
from loraft.kernels.packed_experts import PackedExperts, let_go
from loraft.kernels.pieces import PIECE, Run, spans
from loraft.models.modules import modules_of, output_head
from loraft.models.quantize import ordinary
from loraft.tasks.task import Before

LEAST = 1e-30
"""No norm is less, so that an output whose weights are all zero stays zero, as in training."""
_own = local()
"""The buffer of each thread."""


def updated(
    weight: Tensor, updates: Sequence[LoraFactors], dtype: torch.dtype | None = None, *, transposed: bool = False
) -> Tensor:
    """The weight with all updates in it, whole, in `dtype` or else its own; as `updated_pieces` makes it.

    It is made on the CPU wherever the weight is: a merge of files makes the same numbers.
    """
    result = torch.empty(weight.shape, dtype=dtype or weight.dtype)
    rows, row = result.view(-1, weight.shape[-1]), 0
    for piece in updated_pieces(weight.cpu(), updates, result.dtype, transposed=transposed):
        rows[row : row + len(piece)] = piece
        row += len(piece)
    return result.to(weight.device)


def updated_pieces(
    weight: Tensor, updates: Sequence[LoraFactors], dtype: torch.dtype, *, transposed: bool = False, run: Run = map
) -> Iterator[Tensor]:
    """The weight with all updates in it, a few rows at a time: summed in float32, and cast once to `dtype`.

    The weight is `[out, in]`, or where `transposed` `[in, out]`, as GPT-2's Conv1D and embeddings store it; of several
    experts there is one such matrix each. There is at least one update; where one is DoRA it is alone.
    """
    updates = [update.in_float32_on_cpu() for update in updates]
    if weight.dim() == 3:
        for number, matrix in enumerate(weight):
            of_expert = [update.expert(number) for update in updates]
            yield from updated_pieces(matrix, of_expert, dtype, transposed=transposed, run=run)
        return
    magnitude = updates[0].magnitude
    by_column = None
    if magnitude is not None and transposed:  # a norm is over all rows here, so they are gone through twice
        by_column = magnitude / _column_norms(weight, updates)

    def piece(rows: slice) -> Tensor:
        summed = _sum(weight, updates, rows, transposed=transposed)
        if by_column is not None:
            summed.mul_(by_column)
        elif magnitude is not None:
            summed.mul_((magnitude[rows] / torch.linalg.vector_norm(summed, dim=1).clamp_min(LEAST))[:, None])
        return summed.clone() if dtype == torch.float32 else summed.to(dtype)

    yield from run(piece, spans(weight.shape))


def cast_pieces(weight: Tensor, dtype: torch.dtype, *, run: Run = map) -> Iterator[Tensor]:
    """A weight in another dtype, a piece at a time; in its own it is given as it is, whole."""
    if weight.dtype == dtype:
        yield weight
        return
    flat = weight.reshape(-1)
    yield from run(lambda span: flat[span].to(dtype), spans(flat.shape))


def pieces_with_rows(
    weight: Tensor, rows: Sequence[int], values: Tensor, dtype: torch.dtype, *, run: Run = map
) -> Iterator[Tensor]:
    """A weight `[rows, width]` in a dtype, with other values `[len(rows), width]` in some of its rows.

    Rows behind its last one may be among them, with none left out: the weight is then so much longer.
    """
    places: dict[int, int] = {row: number for number, row in enumerate(rows)}  # the last of a row that is named twice
    count = max(len(weight), 1 + max(rows, default=-1))

    def piece(span: slice) -> Tensor:
        own = weight[span].to(dtype, copy=True)
        behind = own.new_empty(span.stop - span.start - len(own), own.shape[1])
        result = torch.cat([own, behind]) if len(behind) else own
        for row in range(span.start, span.stop):
            if row in places:
                result[row - span.start] = values[places[row]].to(dtype)
        return result

    yield from run(piece, spans((count, weight.shape[1])))


def _sum(weight: Tensor, updates: Sequence[LoraFactors], rows: slice, *, transposed: bool) -> Tensor:
    """Some rows of W + Σ s · B A, as the weight is stored; the next sum of the same thread overwrites them.

    Fresh memory for each would take most of the time: the system clears it page by page.
    """
    count, width = rows.stop - rows.start, weight.shape[1]
    buffer: Tensor | None = getattr(_own, "buffer", None)
    if buffer is None or len(buffer) < count * width:
        buffer = _own.buffer = torch.empty(max(PIECE, count * width), dtype=torch.float32)
    summed = buffer[: count * width].view(count, width)
    summed.copy_(weight[rows])
    for update in updates:
        left, right = (update.a[:, rows].T, update.b.T) if transposed else (update.b[rows], update.a)
        summed.addmm_(left, right, alpha=update.scale)
    return summed


def _column_norms(weight: Tensor, updates: Sequence[LoraFactors]) -> Tensor:
    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in spans(weight.shape):
        squares += _sum(weight, updates, rows, transposed=True).double().square().sum(dim=0)
    return squares.sqrt().float().clamp_min(LEAST)


@contextmanager
def acting(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """The model with the adapter `name` active, or with none of them; afterwards as it was.

    A model without adapters is left alone.
    """
    if not isinstance(model, PeftModel):
        yield model
        return
    active, on = model.active_adapter, _is_on(model)
    # peft makes whatever it switches on trainable, and whatever it switches off not.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        _switch(model, active if name is None else in_peft(name), on=name is not None)
        yield model
    finally:
        _switch(model, active, on=on)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _switch(model: PeftModel, name: str, *, on: bool) -> None:
    if name != model.active_adapter:
        model.set_adapter(name)
    tuner: Any = model.base_model
    if on != _is_on(model):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Careful, disabling adapter layers with bias"
            )  # ours are put back
            (tuner.enable_adapter_layers if on else tuner.disable_adapter_layers)()
    let_biases_act(model, (name,) if on else ())


def _is_on(model: PeftModel) -> bool:
    return not any(layer.disable_adapters for layer in modules_of(model, BaseTunerLayer).values())


def act_together(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Let several adapters of a model act at once from now on, each update multiplied by its weight."""
    assert isinstance(model, PeftModel), "a model without adapters has none to act"
    for layer in modules_of(model, LoraLayer).values():
        for name, weight in weights.items():
            if in_peft(name) in layer.scaling:
                layer.scaling[in_peft(name)] *= weight
    tuner: Any = model.base_model
    tuner.set_adapter([in_peft(name) for name in weights])  # the wrapper's own method takes one name
    let_biases_act(model, [in_peft(name) for name in weights])
    model.requires_grad_(False)


Folded = Callable[[str, nn.Module, str], object]
"""Is told the name of a weight that updates were folded into, the module that has it, and what it is called there."""


def merged(
    adapted: AdaptedModel, *names: str, dtype: torch.dtype | None = None, folded: Folded = lambda *_: None
) -> PreTrainedModel:
    """The base with adapters in its weights, and no peft around it; `adapted` is used up.

    Without names it is the first adapter; several are low-rank updates alone, which are summed. Quantized modules that
    are adapted become ordinary ones, whose weight is the dequantized one with the update, in `dtype`, or where that is
    None in the weight's own; each is `folded` in turn. A tied weight that only one side changes is tied no more. A
    model that was trained whole is given back as it is.

    Raises:
        AdapterError: A module that cannot be merged.
    """
    model = adapted.model
    if not isinstance(model, PeftModel):
        return model
    names = names or adapted.names[:1]
    called = [in_peft(name) for name in names]
    with acting(model, names[0]), torch.no_grad():
        for path, module in list(model.get_base_model().named_modules()):
            if isinstance(module, LoraLayer):
                if held := [each for each in called if each in module.lora_A or each in module.lora_embedding_A]:
                    folded(*_fold(path, module, held, dtype))
            elif isinstance(module, TrainableTokensLayer) and called[0] in module.trainable_tokens_delta:
                module.merge(adapter_names=called)
        _keep_trained_biases(model)
        base: PreTrainedModel = model.unload()
    head: Any = output_head(base)
    if head is not None and head.weight is not base.get_input_embeddings().weight:
        base.config.tie_word_embeddings = False  # else they would be tied again on the next occasion
    base.train(False)
    return base


def _keep_trained_biases(model: PeftModel) -> None:
    """Give the base, which is about to leave peft, the biases that act now as its own."""
    biases = biases_of(model)
    for name in biases.parameters if biases is not None else ():
        owner, _, kind = name.rpartition(".")
        module = model.get_base_model().get_submodule(owner)
        setattr(module, kind, nn.Parameter(module.get_parameter(kind).data, requires_grad=False))


def _fold(path: str, module: Any, names: Sequence[str], dtype: torch.dtype | None) -> tuple[str, nn.Module, str]:
    """Give the module inside a LoRA layer the weight with the updates of these adapters, as a parameter of its own.

    Returns:
        The weight's name, the module that has it, and what it is called there.
    """
    inner = module.get_base_layer()
    if isinstance(module, ParamWrapper):
        return _fold_parameter(path, module, inner, names, dtype)
    require_foldable(path, inner, dora=bool(module.lora_magnitude_vector))
    if isinstance(inner, nn.Embedding):
        a, b, scales = module.lora_embedding_A, module.lora_embedding_B, module.scaling
        updates = [LoraFactors(a[name], b[name], scales[name]) for name in names]
        weight = updated(inner.weight, updates, dtype, transposed=True)
    else:
        weight = updated(unpacked(inner), [_factors(module, name) for name in names], dtype)
        for name in names:
            if module.lora_bias[name]:
                _fold_bias(path, inner, module.lora_B[name].bias, module.scaling[name])
    if isinstance(inner, Conv1D):
        weight = weight.T.contiguous()
    if is_quantized(inner):
        inner = module.base_layer = ordinary(inner, weight)
    inner.weight = nn.Parameter(weight, requires_grad=False)
    return f"{path}.weight", inner, "weight"


def require_foldable(path: str, module: nn.Module, *, dora: bool, where: Path | None = None) -> None:
    """Refuse an update of a module that cannot be part of its weight; `where` is the file that has it.

    Raises:
        AdapterError: The module is neither linear nor an embedding, or an embedding with DoRA.
    """
    is_embedding = isinstance(module, nn.Embedding)
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or (is_embedding and dora):
        what = f"DoRA on {path}" if is_embedding else f"an update of {path}, a {type(module).__name__},"
        raise AdapterError(f"{what} cannot be merged", where=where)


def _factors(module: Any, name: str) -> LoraFactors:
    magnitude = module.lora_magnitude_vector[name].weight if name in module.lora_magnitude_vector else None
    return LoraFactors(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], magnitude)


def _fold_parameter(
    path: str, module: Any, inner: nn.Module, names: Sequence[str], dtype: torch.dtype | None
) -> tuple[str, nn.Module, str]:
    """Give a module the merged parameter, of which each expert may have a matrix."""
    if isinstance(inner, PackedExperts):
        let_go(inner, inner.get_parameter(module.parameter_name).dtype)
    found = [parameter_factors(module, path, name) for name in names]
    weight, of = module.get_param().detach(), found[0][1]
    whole = updated(weight, [update for update, _ in found], dtype, transposed=of.transposed)
    setattr(inner, module.parameter_name, nn.Parameter(whole, requires_grad=False))
    return of.name, inner, module.parameter_name


def _fold_bias(path: str, inner: Any, added: Tensor, scale: float) -> None:
    """Add the bias of B: s · (B A x + b) is the update."""
    if inner.bias is None:
        message = f"the update of {path} has a bias and the module has none"
        raise AdapterError(message, key="lora_bias", remedy="Use it unmerged: `loraft.generate` with `adapters`.")
    bias = inner.bias.detach()
    summed = (bias.float() + scale * added.float()).to(bias.dtype)
    inner.bias = nn.Parameter(summed, requires_grad=False)


def begins_as_the_base(lora: LoraSection, targets: TargetModules | None) -> bool:
    """Whether the adapter of a run changes nothing before it is trained, and switching it off takes all of it away."""
    if targets is None or targets.saved or targets.biases or targets.rows:
        return False
    return lora.start_from is None and lora.init not in (*FROM_WEIGHTS, "loftq")


def before_training(adapted: AdaptedModel, lora: LoraSection) -> Before:
    """What makes a model, while it is entered, what it is now, as it was just made; there is no second copy of it.

    Where its adapter begins as nothing, that is the base with the adapter switched off. Where it begins as something,
    from another adapter or with directions of the weights, what is trained is kept as it began.
    """
    if begins_as_the_base(lora, adapted.targets):
        return partial(acting, adapted.model, None)
    began = {name: weight.detach().clone() for name, weight in adapted.trainable.items()}
    return partial(_as_it_began, adapted.trainable, began)


@contextmanager
def _as_it_began(trained: dict[str, nn.Parameter], began: dict[str, Tensor]) -> Iterator[None]:
    """What is trained has the values that it began with; the tensors change places, and nothing is copied."""
    now = {name: weight.data for name, weight in trained.items()}
    try:
        for name, weight in trained.items():
            weight.data = began[name]
        yield
    finally:
        for name, weight in trained.items():
            weight.data = now[name]
