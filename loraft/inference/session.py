"""A base with its adapters, opened once and ready to answer in the voice of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraft.adapters.effect import acting, merged
from loraft.adapters.metadata import AdapterTarget, ResolvedTarget
from loraft.adapters.resolve_target import base_named_by, classes_of, resolve_target
from loraft.adapters.save_adapter import load_adapters, stop_ids_of
from loraft.config.choices import TASK_OF_GROUP
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, ConfigError, ModelError
from loraft.inference.completion import stop_texts_of
from loraft.inference.engine import Settings
from loraft.inference.fixed_decoding import why_not_fixed
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.sampling import SamplingParams, checked, saved_defaults, saved_limit, unheeded_defaults
from loraft.io.resources import memory_errors
from loraft.models.device import DTYPES, DeviceConfig, select_device
from loraft.models.hf_config import check_dtype
from loraft.models.load_model import LoadedModel, load_config, load_model, load_tokenizer
from loraft.models.modules import embedding_weight
from loraft.models.probe import spec_of
from loraft.models.registry import ModelSpec
from loraft.rows.formats import Message
from loraft.tasks import TASKS
from loraft.tasks.task import Task
from loraft.tasks.training_metadata import SourceFormat, TrainingMetadata
from loraft.tokenization.examples import RowRenderer

BASE = "base"
"""The voice of the base without an adapter."""
LARGEST_SEED = 2**32 - 1


def seed_of_row(seed: int | None, number: int) -> int | None:
    """The seed that row `number` of a file draws by, from 0; None where each draw is another."""
    return None if seed is None else (seed + number) % (LARGEST_SEED + 1)


MAX_NEW_TOKENS = 256
"""The most tokens of an answer where neither the caller nor the model says."""


@dataclass(frozen=True, eq=False)
class Speaker:
    """How one adapter, or the base alone, is asked and answers: as it was in training.

    Attributes:
        defaults: What was saved beside it, or what the base has; None where neither says anything.
        first_tokens: The rules by which an answer begins in the target's language; none where there is none.
        cuda_graphs: Whether steps are launched as one graph on CUDA.
    """

    name: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    renderer: RowRenderer
    defaults: GenerationConfig | None
    first_tokens: Mapping[str, int | None] = field(default_factory=dict)
    cuda_graphs: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about how it is asked and answers, a sentence each."""
        unheeded = unheeded_defaults(self.defaults, reads_source=self.renderer.reads_source)
        asks = f"generation_config.json asks for {', '.join(unheeded)}, which loraft does not do"
        return (*self.renderer.notes, asks) if unheeded else self.renderer.notes

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every way in which an answer may end: the chat's and those that were saved."""
        return tuple(dict.fromkeys([*self.renderer.stop_ids, *stop_ids_of(self.defaults)]))

    def settings(self, options: GenerationRequest) -> Settings:
        """What the caller asks for, if it is within bounds; what was saved where the caller says nothing."""
        if options.max_new_tokens is not None and options.max_new_tokens < 1:
            raise ConfigError(f"must be at least 1, not {options.max_new_tokens}", key="max_new_tokens")
        if options.seed is not None and not 0 <= options.seed <= LARGEST_SEED:
            raise ConfigError(f"must be from 0 to {LARGEST_SEED:,}, not {options.seed}", key="seed")
        saved = saved_limit(self.defaults, reads_source=self.renderer.reads_source)
        return Settings(
            rules=SamplingParams.of(self.defaults, options).beginning_with(self.first_tokens),
            max_new_tokens=options.max_new_tokens or saved or MAX_NEW_TOKENS,
            stop_ids=self.stop_ids,
            stop_texts=stop_texts_of(self.defaults, options),
            seed=options.seed,
            cuda_graphs=self.cuda_graphs,
        )

    def conversing(self) -> Speaker:
        """The same voice, able to print conversations: as chatml where its tokenizer has no chat template."""
        try:
            return replace(self, renderer=self.renderer.conversing())
        except ModelError as error:
            raise ModelError.several(replace(each, where=self.name) for each in error.problems) from None

    def conversation(self, prompt: str, system: str | None = None) -> list[Message]:
        """The messages that a prompt stands for: the system prompt that is given, or that of training, before it."""
        return self.with_system([Message("user", prompt)], system)

    def with_system(self, messages: Sequence[Message], system: str | None = None) -> list[Message]:
        """The messages after the system prompt that is given, or that of training; an empty one is none."""
        system = self.renderer.system_prompt if system is None else system
        return [Message("system", system), *messages] if system else list(messages)

    def about_prompts(self, prompts: Iterable[Sequence[Message]]) -> tuple[str, ...]:
        """What there is to say about what is asked, a sentence each."""
        return self.renderer.control_tokens.findings(each.content for messages in prompts for each in messages)


@dataclass(frozen=True, eq=False)
class Session:
    """An open model.

    Attributes:
        model: What is run: the base, or peft's wrapper with every adapter in it.
        voices: Each adapter's by its name, then the base's; the first one answers where nobody says which.
        quantization: How the base is quantized, or was until it was merged; None where it is not.
    """

    loaded: LoadedModel
    model: nn.Module
    voices: Mapping[str, Speaker]
    quantization: QuantizationSection | None
    notes: tuple[str, ...]
    merged: bool = False

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, the one that answers first."""
        return tuple(name for name in self.voices if name != BASE)

    def voice(self, name: str | None = None) -> Speaker:
        """The voice of that name, or the one that answers where nobody says which."""
        if name is None:
            return next(iter(self.voices.values()))
        if name not in self.voices:
            known = ", ".join(self.voices)
            raise AdapterError(f"there is no adapter {name!r} here", key="adapter", remedy=f"There is {known}.")
        return self.voices[name]

    def speaking(self, voice: Speaker) -> AbstractContextManager[nn.Module]:
        """The model with the adapter of `voice` active, or with none for the base's; afterwards as it was."""
        return acting(self.model, None if voice.name == BASE else voice.name)


def open_session(choice: ModelRequest, found: ResolvedTarget | None = None) -> Session:
    """Load what a choice means, if it writes text; `found` is what it means, where that was found already."""
    found = found or resolve_target(choice.target, choice.adapters, base_model=choice.base_model)
    if choice.merge and len(found.adapters) != 1:
        raise AdapterError(f"one adapter can be merged, and there are {len(found.adapters)}", parameter="merge")
    section = found.model.section.model_copy(update={"dtype": choice.dtype} if choice.dtype else {})
    check_dtype(_writer(found, choice), DTYPES.get(section.dtype))
    quantization = found.quantization if choice.quantize is None else choice.quantize
    placed = select_device(section)
    _refuse_about_cuda(placed, choice)
    loaded = load_model(found.model, placed, quantization=quantization, group=None)
    adapted = load_adapters(loaded, {each.name: each.folder for each in found.adapters}) if found.adapters else None
    voices = _voices(found, loaded, choice)
    stored = _storage_notes(found.adapters, quantization)
    rendering = next(iter(voices.values())).notes
    launched = _launch_notes(loaded, choice)
    notes = (*found.notes, *loaded.notes, *stored, *(adapted.notes if adapted else ()), *rendering, *launched)
    if (choice.source_lang or choice.target_lang) and not any(voice.first_tokens for voice in voices.values()):
        notes += ("the tokenizer has no codes of languages: their names are those of the rows alone",)
    if choice.merge and adapted is not None:
        del voices[BASE]
        remedy = "Answer without `merge`, or fold the adapter in file by file with `loraft.merge`."
        with memory_errors("memory ran out while the adapter was merged", parameter="merge", remedy=remedy):
            return Session(loaded, merged(adapted, dtype=placed.dtype), voices, quantization, notes, merged=True)
    return Session(loaded, loaded.model if adapted is None else adapted.model, voices, quantization, notes)


def _writer(found: ResolvedTarget, choice: ModelRequest) -> ModelSpec:
    """What kind of model it is; one that writes no text is refused."""
    if classes_of(found):
        called = choice.target or (choice.adapters[0] if choice.adapters else found.base)
        message = f"{called} is a classifier: it tells the class of a text, and writes none"
        remedy = f"Let it classify: `loraft.predict({called!r}, texts=[TEXT])`"
        raise ModelError(message, parameter="target", remedy=remedy)
    with base_named_by(found):
        config = load_config(found.model, None)
    family = spec_of(config)
    if not family.generates:
        kind = f"model type {config.model_type!r} is an encoder"
        message = f"{kind}: it fills in and classifies, and does not generate text"
        remedy = "Name a decoder-only or an encoder-decoder model."
        raise ModelError(message, key="model.name_or_path", remedy=remedy)
    if family.kind == "decoder" and (choice.source_lang or choice.target_lang):
        message = f"model type {config.model_type!r} goes on with its prompt: it has no source and no target language"
        raise ModelError(message, parameter="source_lang" if choice.source_lang else "target_lang")
    return family


def task_of_base(loaded: LoadedModel) -> Task:
    """What a model of its kind is for."""
    return TASKS[TASK_OF_GROUP[loaded.family.group]]


def in_languages(sources: SourceFormat, choice: ModelRequest) -> SourceFormat:
    """How sources are rendered that were rendered as `sources` in training, in the languages that are asked for."""
    source, target = choice.source_lang or sources.source_lang, choice.target_lang or sources.target_lang
    return replace(sources, source_lang=source, target_lang=target)


def _voices(found: ResolvedTarget, loaded: LoadedModel, choice: ModelRequest) -> dict[str, Speaker]:
    """The voice of each adapter and of the base; one tokenizer for all that have the same."""
    tokenizers, task = {found.model.section.tokenizer: loaded.tokenizer}, task_of_base(loaded)
    vocabulary = len(embedding_weight(loaded.model))

    def voice(name: str, folder: Path, tokenizer: str | None, metadata: TrainingMetadata) -> Speaker:
        if tokenizer not in tokenizers:
            tokenizers[tokenizer] = load_tokenizer(found.model.with_tokenizer(tokenizer), None)
        own = tokenizers[tokenizer]
        defaults = saved_defaults(folder, vocabulary) or saved_defaults(loaded.folder, vocabulary)
        metadata = replace(metadata, sources=in_languages(metadata.sources, choice))
        renderer = task.renderer_as_trained(own, metadata)
        if defaults is None and renderer.reads_source:  # its config.json may say how answers begin and end
            defaults = checked(loaded.model.generation_config, loaded.folder / "config.json", vocabulary)
        first = task.first_tokens(loaded.model, renderer) if renderer.knows_languages else {}
        return Speaker(name, folder, own, renderer, defaults, first, choice.cuda_graphs)

    voices = {each.name: voice(each.name, each.folder, each.tokenizer, each.metadata) for each in found.adapters}
    # The base beside adapters is asked as the first of them: a prefix names the task, and a language the answer's.
    base = replace(found.own, sources=found.metadata.sources)
    return {**voices, BASE: voice(BASE, loaded.folder, None, base)}


def _refuse_about_cuda(placed: DeviceConfig, choice: ModelRequest) -> None:
    """Refuse to leave out what another device than CUDA does not have."""
    if placed.device != "cuda" and not choice.cuda_graphs:
        message = f"`cuda_graphs=False` is about CUDA, and what answers is a CPU ({placed.device_name})"
        raise ConfigError(message, remedy="Leave it out.")


def _launch_notes(loaded: LoadedModel, choice: ModelRequest) -> Iterator[str]:
    """What there is to say where a step of decoding on CUDA is not one graph."""
    if loaded.placement.device == "cuda" and choice.cuda_graphs and (reason := why_not_fixed(loaded.model)):
        yield f"each token is many launches, not one CUDA graph: {reason}"


def _storage_notes(adapters: Sequence[AdapterTarget], used: QuantizationSection | None) -> Iterator[str]:
    """What there is to say where a base is not stored as it was while an adapter was trained on it."""
    for adapter in adapters:
        trained, now = _stored(adapter.quantization), _stored(used)
        if adapter.fingerprint is not None and trained != now:  # else nobody recorded how it was trained
            name = adapter.name
            yield f"the adapter {name} was trained on its base {trained}, and runs on it {now}: its answers differ"


def _stored(quantization: QuantizationSection | None) -> str:
    return "unquantized" if quantization is None else f"in {quantization.words}"
