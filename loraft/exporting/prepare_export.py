"""What a GGUF file of a model will hold: known, and known to be what llama.cpp computes, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.config.choices import TASK_OF_GROUP
from loraft.errors import AdapterError, ConfigError, ModelError, lacking
from loraft.exporting.gguf_families import GgufFamily, family_of
from loraft.exporting.gguf_settings import Value, settings_of
from loraft.exporting.gguf_tensors import GgufTensor, OutType, TensorNames, planned
from loraft.exporting.gguf_vocabulary import adds_beginning, vocabulary_of
from loraft.exporting.modelfile import modelfile
from loraft.exporting.write_gguf import GgufFile
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import SamplingParams, saved_defaults
from loraft.inference.session import Speaker
from loraft.kernels.pieces import Run
from loraft.merging.merged_tensors import MergedTensors
from loraft.merging.prepare_merge import BaseChoice, Merge, prepare_merge
from loraft.models.load_model import load_config, load_noted_tokenizer
from loraft.models.safetensors_index import Slot
from loraft.rows.formats import Message
from loraft.tasks import TASKS

FILE_TYPES: Mapping[OutType, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32,
}  # fmt: skip
"""What a file says of the type of most of its tensors. Source: llama.cpp, include/llama.h, `llama_ftype`."""
EMBEDDINGS = "token_embd.weight"
MORE_STOPS = ("eot_token_id", "eom_token_id")
"""The keys for tokens that end an answer, beside the end of a text."""


def prepare_export(
    target: ResolvedTarget, weights: Sequence[float], outtype: OutType, base: BaseChoice | None, named: str | None
) -> tuple[GgufFile, Merge, str]:
    """Find out what a GGUF file of a base, with its adapters folded in, holds.

    Each adapter is multiplied by its weight, matrices are written in `outtype`, and `base` is as `loraft.merge` has it.

    Returns:
        The file, where its weights come from, and the text of a Modelfile beside it where that is `named`.

    Raises:
        InvalidInputError: llama.cpp would compute another model, or split text otherwise; the base or an adapter cannot
            be read, or they do not go together; or no Modelfile says what the chat template does.
    """
    config, family, where = base_of(target)
    settings = settings_of(config, family, where)
    merge = merge_of(target, weights, base)
    made = MergedTensors(merge)
    slots = _slots(merge, made, family, config, where)
    speaker, about_tokenizer = speaker_of(target)
    vocabulary, about_tokens = vocabulary_of(speaker.tokenizer, slots[EMBEDDINGS].shape[0], where)
    tensors = [planned(slot, name, outtype, family, config) for name, slot in slots.items()]
    factors = [GgufTensor(name, tuple(each.shape), "f32") for name, each in settings.factors.items()]
    rules = SamplingParams.of(speaker.defaults, GenerationRequest())
    stops, about_stops = _stops(speaker)
    template = speaker.renderer.prompt_template
    values = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.name": name_of(target),
        "general.file_type": FILE_TYPES[outtype],
        "general.quantization_version": 2,
        **_drawing(rules),
        **{f"{family.architecture}.{key}": value for key, value in settings.values.items()},
        f"{family.architecture}.vocab_size": slots[EMBEDDINGS].shape[0],
        **vocabulary,
        **stops,
        **({} if template is None else {"tokenizer.chat_template": template.text}),
    }
    notes = [*merge.notes, *settings.notes, *about_tokenizer, *about_tokens, *about_stops]
    notes += [*about_types(tensors, outtype), *_about_asking(speaker, rules, told_beside=named is not None)]

    def numbers(tensor: GgufTensor, run: Run) -> Iterable[Tensor]:
        own = settings.factors.get(tensor.name)
        return made.numbers(slots[tensor.name], run) if own is None else [own]

    file = GgufFile(values, [*factors, *tensors], numbers, tuple(dict.fromkeys(notes)))
    adds_start = bool(values["tokenizer.ggml.add_bos_token"])
    return file, merge, modelfile(speaker, rules, named, adds_start=adds_start) if named else ""


def base_of(target: ResolvedTarget) -> tuple[PreTrainedConfig, GgufFamily, str]:
    """The config of a target's base, its row of the table, and what errors call it.

    Raises:
        ModelError: It is none that llama.cpp computes as transformers does, or no package is there for the format.
    """
    if problem := lacking("gguf", "a .gguf file", parameter="out"):
        raise ModelError.several([problem])
    config, where = load_config(target.model, None), shown(target.base)
    return config, family_of(config.model_type, where), where


def merge_of(target: ResolvedTarget, weights: Sequence[float], base: BaseChoice | None) -> Merge:
    """What is folded into what, in float32: each number is rounded once, to the type that it is written in.

    Raises:
        InvalidInputError: A classifier, a base to fold into without an adapter, or what `prepare_merge` refuses.
    """
    if base is not None and not target.adapters:
        message = "it is what an adapter is folded into, and there is none"
        raise ConfigError(message, parameter="base", remedy="Leave it out, or name an adapter.")
    merge = prepare_merge(target, weights, base=base, dtype="float32")
    if merge.labels:
        message = "it tells classes apart, and a GGUF file of a decoder writes text"
        remedy = "Use it with `loraft.predict`, or fold the adapter in by `loraft.merge`."
        raise AdapterError(message, parameter="target", remedy=remedy)
    return merge


def name_of(target: ResolvedTarget) -> str:
    """What a file calls the model: after the adapter that is in it, or the base."""
    folder = target.adapter
    if folder is None:
        return shown(target.base).rpartition("/")[2].removesuffix(".gguf")
    return folder.parent.name if folder.name == "adapter" else folder.name


def speaker_of(target: ResolvedTarget) -> tuple[Speaker, tuple[str, ...]]:
    """How a target is asked and answers, and what there is to say of its tokenizer."""
    tokenizer, notes = load_noted_tokenizer(target.model, None)
    folder: Path = target.adapter or target.model.folder
    renderer = TASKS[TASK_OF_GROUP["decoder"]].renderer_as_trained(tokenizer, target.metadata)
    defaults = saved_defaults(folder) or saved_defaults(target.model.folder)
    return Speaker(name_of(target), folder, tokenizer, renderer, defaults), notes


def _slots(
    merge: Merge, made: MergedTensors, family: GgufFamily, config: PreTrainedConfig, where: str
) -> dict[str, Slot]:
    """The tensors of a model, by their names in the file; what the model does not have is left out, as in loading.

    Raises:
        ModelError: One has no place in the file.
    """
    model = merge.base.model
    tied = model.all_tied_weights_keys.keys() - merge.plan.untied.keys()
    own = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and name not in tied}
    names = TensorNames(family, config.num_hidden_layers, where)
    if merge.converted:
        raise names.no_place(min(merge.converted))
    return {names.of(called): slot for called, slot in made.slots.items() if called in own}


def _stops(speaker: Speaker) -> tuple[dict[str, Value], list[str]]:
    """The tokens that end an answer beside the end of a text, and those that no key is left for."""
    others = [each for each in speaker.stop_ids if each != speaker.tokenizer.eos_token_id]
    left = speaker.tokenizer.convert_ids_to_tokens(others[len(MORE_STOPS) :])
    values: dict[str, Value] = {
        f"tokenizer.ggml.{key}": number for key, number in zip(MORE_STOPS, others, strict=False)
    }
    said = f"GGUF has no key for a fourth token that ends an answer: name {', '.join(left)} where the file is used"
    return values, [said] if left else []


def _drawing(rules: SamplingParams) -> dict[str, Value]:
    """How tokens are drawn where nobody says, whole: what is left out would be llama.cpp's own."""
    return {
        "general.sampling.temp": float(rules.temperature),
        "general.sampling.top_k": rules.top_k or 0,
        "general.sampling.top_p": 1.0 if rules.top_p is None else float(rules.top_p),
        "general.sampling.min_p": float(rules.min_p or 0.0),
        "general.sampling.penalty_repeat": float(rules.repetition_penalty),
    }


def about_types(tensors: Sequence[GgufTensor], outtype: OutType) -> Iterator[str]:
    """What matrices are not in the type that was asked for, a sentence."""
    others = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.kind not in (outtype, "q8_0")]
    if others:
        yield f"{len(others)} tensors are in {others[0].kind}: their rows cannot be parted into blocks of {outtype}"


def _about_asking(speaker: Speaker, rules: SamplingParams, *, told_beside: bool) -> Iterator[str]:
    """What decides an answer here and has no place in the file, nor `told_beside` it in Ollama's."""
    yield from speaker.notes
    begin, template = str(speaker.tokenizer.bos_token), speaker.renderer.prompt_template
    begins = template is not None and template.prompt([Message("user", "a")]).startswith(begin)
    if template is not None and not begins and adds_beginning(speaker.tokenizer):
        yield f"llama.cpp begins a conversation with {begin}, which the chat template does not print"
    if speaker.renderer.system_prompt and not told_beside:
        yield "the system prompt that it was trained with has no place in the file: `ollama` writes it beside it"
    if rules.num_beams > 1:
        yield f"it answers with {rules.num_beams} beams, which GGUF has no key for"
    if rules.never:
        yield "there are tokens that it never says (suppress_tokens), which GGUF has no key for"
