"""An adapter in a folder: saved so that PEFT loads it unchanged, loaded so that nothing wrong goes unseen.

A saved model is its weights, the tokenizer with the chat template of training, generation defaults, card and record.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from loraft.adapters.adapter_config import ADAPTER_CONFIG, RECORDED
from loraft.adapters.adapter_files import (
    OF_ANOTHER_BASE,
    AdapterFiles,
    adapter_tensors,
    insert,
    non_finite,
    read_adapter,
)
from loraft.adapters.adapter_reader import read_tensors
from loraft.adapters.inject import AdaptedModel, add_lora_layers, lora_config_of
from loraft.adapters.lora_factors import ADAPTER_NAME, ADAPTER_WEIGHTS, check_adapter_name, in_peft
from loraft.adapters.model_card import TrainingFacts, model_card, shown
from loraft.adapters.token_rows import refuse_untrained_rows
from loraft.adapters.trained_biases import let_biases_act
from loraft.config.schema import GenerationSection, RunConfig
from loraft.errors import AdapterError, NonFiniteError
from loraft.io.atomic import atomic_dir, write_json
from loraft.io.checksums import write_record
from loraft.io.secrets import redacted
from loraft.models.auto_model import from_pretrained
from loraft.models.hf_config import copy_processors, drop_code, own_code
from loraft.models.load_model import LoadedModel
from loraft.models.model_structure import tied_modules
from loraft.models.modules import embedding_weight, is_within, wrapped_model
from loraft.tasks import TASKS
from loraft.tokenization.examples import RowRenderer
from loraft.version import __version__, versions

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_adapter(
    adapted: AdaptedModel, folder: Path, *, config: RunConfig, renderer: RowRenderer, facts: TrainingFacts
) -> None:
    """Write an adapter and all that using it needs, in PEFT's own format; an older one in `folder` is replaced.

    Raises:
        NonFiniteError: If a tensor holds NaN or infinity; `folder` is left as it was.
        DiskFullError: If the disk fills up; `folder` is left as it was.
    """
    model = adapted.model
    assert isinstance(model, PeftModel), "save_full writes a model that was trained whole"
    tensors = {name: tensor.contiguous() for name, tensor in adapter_tensors(model, ADAPTER_NAME).items()}
    refuse_non_finite(tensors, folder)
    with atomic_dir(folder, needed=sum(tensor.nbytes for tensor in tensors.values())) as staging:
        save_file(tensors, staging / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(staging / ADAPTER_CONFIG, _adapter_config(model))
        _write_company(adapted, staging, config, renderer, facts)


def save_full(
    adapted: AdaptedModel,
    folder: Path,
    *,
    config: RunConfig,
    renderer: RowRenderer,
    facts: TrainingFacts,
    write_weights: Callable[[Path], None] | None = None,
) -> None:
    """Write a model that was trained whole, as transformers loads it; an older one in `folder` is replaced.

    Where its weights are not all here, `write_weights` writes them into a folder.

    Raises:
        NonFiniteError: If a tensor holds NaN or infinity; `folder` is left as it was.
        DiskFullError: If the disk fills up; `folder` is left as it was.
    """
    model = adapted.model
    assert isinstance(model, PreTrainedModel), "save_adapter writes an adapter"
    if write_weights is None:
        refuse_non_finite({name: weight.data for name, weight in adapted.trainable.items()}, folder)
    with atomic_dir(folder, needed=sum(weight.nbytes for weight in model.parameters())) as staging:
        if write_weights is None:
            model.save_pretrained(staging)
        else:
            model.save_pretrained(staging, state_dict={})  # what lies beside weights
            write_weights(staging)
        copy_processors(adapted.loaded.folder, staging)
        _write_company(adapted, staging, config, renderer, facts)


def load_adapters(loaded: LoadedModel, folders: Mapping[str, Path]) -> AdaptedModel:
    """Put saved adapters into their base, to be used and not trained; the first of them is active.

    As in training, their forward runs under `torch.autocast` where the base is not float32.

    Nothing is attached to the base, and it is left so when an adapter is refused. There is at least one adapter.

    Raises:
        AdapterError: If a folder is damaged or does not fit the base; all that is found in it is said.
    """
    for name in folders:
        check_adapter_name(name)
    read = {name: read_adapter(folder) for name, folder in folders.items()}
    notes = tuple(note for files in read.values() for note in _fits(files, loaded))
    model: PeftModel | None = None
    try:
        for name, files in read.items():
            model = with_layers(loaded.model if model is None else model, files, in_peft(name))
            insert(model, files, in_peft(name))
    except AdapterError:
        if model is not None:
            let_biases_act(model, ())
            model.unload()
        raise
    assert model is not None, "there is at least one adapter"
    first = in_peft(next(iter(read)))
    model.set_adapter(first)
    let_biases_act(model, (first,))
    model.requires_grad_(False)
    model.eval()
    methods = [files.record.get("method") for files in read.values() if files.record]
    in_4_bits = bool(methods) and all(method == "qlora" for method in methods)
    return AdaptedModel(loaded, model, None, {}, "qlora" if in_4_bits else "lora", notes, tuple(read))


def _fits(files: AdapterFiles, loaded: LoadedModel) -> tuple[str, ...]:
    """What to tell about an adapter on this base, once it is known to have been trained on it.

    Raises:
        AdapterError: The base's weights are others, or what the base lacks the adapter lacks too.
    """
    notes = files.check_base(loaded.fingerprint)
    if random := [name for name in loaded.new_modules if not any(is_within(part, name) for part in files.saved)]:
        message = f"neither the adapter nor its base has {' and '.join(random)}, and random numbers would answer"
        raise AdapterError(message, where=files.folder)
    refuse_untrained_rows(files, loaded.model, loaded.own_rows)
    if untied := sorted(files.saved.intersection(tied_modules(loaded.model))):
        notes += (f"The adapter has a {' and a '.join(untied)} of its own, which the base ties to another module.",)
    return notes


def with_layers(model: PeftModel | PreTrainedModel, files: AdapterFiles, name: str) -> PeftModel:
    """The model with adapter layers for what a folder holds, whose values are not yet decided.

    Raises:
        AdapterError: The targets match nothing, or an expression cannot be used.
    """
    _refuse_absent_rows(model, files)
    try:
        return add_lora_layers(model, files.config, name, where=str(files.folder / ADAPTER_CONFIG))
    except ValueError as error:  # peft's word for targets that match nothing
        raise AdapterError(f"it does not fit the base: {error}", where=files.folder) from error


def _refuse_absent_rows(model: PeftModel | PreTrainedModel, files: AdapterFiles) -> None:
    """An adapter may have rows of its own for tokens that were new in training, which the base lacks."""
    last = max((max(rows, default=0) for rows, _ in files.tokens.values()), default=0)
    if last >= (count := len(embedding_weight(wrapped_model(model)))):
        message = f"it has a row of its own for token {last}, and the base has {count} embeddings"
        where = str(files.folder / ADAPTER_CONFIG)
        raise AdapterError(message, where=where, key="trainable_token_indices", remedy=OF_ANOTHER_BASE)


def restore(adapted: AdaptedModel, folder: Path) -> None:
    """Put weights that `save_adapter` or `save_full` wrote back into the model that they came from.

    Raises:
        AdapterError: If the folder is damaged or holds other tensors than the model trains.
    """
    if isinstance(adapted.model, PeftModel):
        insert(adapted.model, read_adapter(folder), ADAPTER_NAME)
        return
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_tensors(path)
    if adapted.trainable.keys() - tensors.keys():  # files may have other names, and experts one by one
        tensors = dict(from_pretrained(type(adapted.model), folder, {"dtype": torch.float32}).state_dict())
    # BART's files have a buffer too, which is not trained.
    strange = (tensors.keys() - adapted.model.state_dict().keys()) | (adapted.trainable.keys() - tensors.keys())
    if strange:
        differing = ", ".join(sorted(strange)[:5])
        raise AdapterError(f"it holds other tensors than the model: {differing}", where=folder)
    for name, weight in adapted.trainable.items():
        weight.data.copy_(tensors[name])


def stop_ids_of(defaults: GenerationConfig | None) -> tuple[int, ...]:
    """The stop ids that a generation config has; none where there is no config."""
    ends = None if defaults is None else defaults.eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def generation_defaults(
    base: GenerationConfig | None, section: GenerationSection, stop_ids: tuple[int, ...], pad_id: int | None
) -> dict[str, object]:
    """The contents of generation_config.json: the base's own, with what the run decides put over it.

    Every way in which an answer ends is a stop id. Settings of sampling are left out where nothing is sampled:
    transformers refuses to save them.
    """
    values: dict[str, object] = base.to_diff_dict() if base else {}
    for key in ("_from_model_config", "max_length", "transformers_version"):
        values.pop(key, None)
    values["eos_token_id"] = list(dict.fromkeys(stop_ids))
    values["max_new_tokens"] = section.max_new_tokens
    if pad_id is not None:
        values["pad_token_id"] = pad_id
    if section.temperature is not None:
        values["do_sample"] = section.temperature > 0
        values["temperature"] = section.temperature
    if not values.get("do_sample"):
        values = {key: value for key, value in values.items() if key not in SAMPLING_ONLY}
    return values


def generation_of(loaded: LoadedModel, config: RunConfig, renderer: RowRenderer) -> dict[str, object]:
    """How what a run trains answers where nobody says otherwise."""
    base = loaded.model.generation_config
    # Those of the base stay, for calls of tools may end otherwise; another tokenizer means other tokens by them.
    own = stop_ids_of(base) if config.model.tokenizer is None else ()
    return generation_defaults(base, config.generation, (*renderer.stop_ids, *own), loaded.tokenizer.pad_token_id)


def _adapter_config(model: PeftModel) -> dict[str, object]:
    """`adapter_config.json`: as peft writes it, but the same bytes every time and the patterns in their order.

    peft lists sets in an order that changes from process to process, and sorts the patterns, of which the first
    that matches wins.
    """
    values: dict[str, object] = lora_config_of(model).to_dict()  # type: ignore[no-untyped-call]
    values["inference_mode"] = True
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return dict(sorted(listed.items()))


def _write_company(
    adapted: AdaptedModel, folder: Path, config: RunConfig, renderer: RowRenderer, facts: TrainingFacts
) -> None:
    """What lies beside the weights, whatever was trained."""
    loaded = adapted.loaded
    # With the template that was used, and without the place that it came from.
    tokenizer: PreTrainedTokenizerBase = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template, tokenizer.name_or_path = renderer.chat_template, shown(loaded.name)
    tokenizer.save_pretrained(folder)
    task = TASKS[config.task]
    if task.generates:
        defaults = {**generation_of(loaded, config, renderer), **task.first_tokens(loaded.model, renderer)}
        write_json(folder / "generation_config.json", defaults)
    card = redacted(model_card(config, facts, __version__, renderer.labels))
    (folder / "README.md").write_text(card, encoding="utf-8")
    drop_code(folder)
    write_record(folder, _record(adapted, config, renderer))


def _record(adapted: AdaptedModel, config: RunConfig, renderer: RowRenderer) -> dict[str, object]:
    loaded, model = adapted.loaded, adapted.model
    lora = lora_config_of(model) if isinstance(model, PeftModel) else None
    quantizes = adapted.method == "qlora" and loaded.stored is None  # else the base's own files say how it is stored
    return {
        "base": {
            "name": shown(loaded.name),
            "revision": config.model.revision,
            "fingerprint": loaded.fingerprint,
            **({"remote_code": True} if own_code(loaded.model.config) else {}),
            # What is trained whole is stored in float32, whatever is computed in.
            "dtype": loaded.placement.dtype_name if config.model.dtype == "auto" else config.model.dtype,
        },
        "lora": {key: getattr(lora, key) for key in RECORDED} if lora is not None else None,
        "method": adapted.method,
        "quantization": config.quantization.model_dump() if quantizes else None,
        "task": config.task,
        **renderer.recorded,
        "versions": versions(),
    }


def refuse_non_finite(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Refuse to save weights that are no numbers.

    Raises:
        NonFiniteError: A tensor holds NaN or infinity.
    """
    if said := non_finite(tensors):
        raise NonFiniteError(f"{said}; not saved", where=folder)
