"""Models that stand side by side: what each reads and answers, what that takes, and where its gradients reach.

The fine-tuned model is that of a run; before there is one its base stands for it, if that can do the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.resolve_target import classes_of, resolve_target, task_of
from loraft.baselines.gradient_reach import Gradients, of_recurrent, of_transformer
from loraft.baselines.recurrent import OTHERS, RecurrentModel, State
from loraft.dataset.sampler import chunks
from loraft.errors import InvalidInputError, ModelError
from loraft.evaluation.evaluator import Answer, EvalModel, RowScore
from loraft.evaluation.open_model import of_classes, telling, writing
from loraft.events import Observer, tell
from loraft.inference.batch_generate import BATCH_SIZE
from loraft.inference.classifier import Classifier, open_classifier
from loraft.inference.completion import Detokenizer, PartialCompletion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import Settings, stream
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.sampling import SamplingParams
from loraft.inference.session import Session, open_session
from loraft.models.modules import wrapped_model
from loraft.planning.known_run import KnownRun
from loraft.tasks import TASKS
from loraft.tokenization.examples import Example, RowRenderer
from loraft.training.run_dir import RunFolder, choose_run_folder

BASE, FINE_TUNED = "base", "fine-tuned"


@dataclass(frozen=True)
class Writing:
    """What it took to write so many tokens after a prompt.

    Attributes:
        state_bytes: What is remembered at the end: keys and values, or a hidden state.
        bytes_a_token: By how much that grew with each token.
    """

    tokens: int
    seconds: float
    state_bytes: int
    bytes_a_token: float


Write = Callable[[Sequence[int], int], Writing]


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A model in the comparison.

    Attributes:
        parameters: All its numbers.
        trained: Those that training changed.
        write: Writes so many tokens after a prompt, whatever they are; None where it tells classes.
    """

    name: str
    model: EvalModel
    parameters: int
    trained: int
    gradients: Gradients
    write: Write | None


class TimedReading:
    """What a model makes of rows, each read once and remembered, with the time that it took."""

    def __init__(self, compared: ComparedModel) -> None:
        self.tokens, self.seconds = 0, 0.0
        self._model = compared.model
        self._read: dict[tuple[int, ...], RowScore] = {}
        self._said: dict[tuple[int, ...], Answer] = {}
        self.model = replace(compared.model, read=self.read, answers=self.answers if compared.write else None)

    def read(self, examples: Sequence[Example]) -> list[RowScore]:
        """The score of each row."""
        keys = [(*each.input_ids, *each.labels) for each in examples]
        if any(key not in self._read for key in keys):
            began = perf_counter()
            self._read |= zip(keys, self._model.read(examples), strict=True)
            self.seconds += perf_counter() - began
            self.tokens += sum(len(each.input_ids) for each in examples)
        return [self._read[key] for key in keys]

    def answers(self, prompts: Sequence[Sequence[int]], first: int) -> list[Answer]:
        """The answer to each prompt."""
        asked = [prompt for prompt in prompts if tuple(prompt) not in self._said]
        if asked and self._model.answers is not None:
            self._said |= zip(map(tuple, asked), self._model.answers(asked, first), strict=True)
        return [self._said[tuple(prompt)] for prompt in prompts]


def target_of(known: KnownRun, name: str, run: str | None) -> tuple[ResolvedTarget, bool] | None:
    """What is compared with, and whether it was fine-tuned: the run or its base; None where that tells no classes."""
    folder = choose_run_folder(known.config.training.output_dir, name, resume=True)
    labels, model = known.data.renderer.labels, known.config.model
    if run is None and not RunFolder(folder).holds_run:
        base = ResolvedTarget(model.name_or_path, model.revision)
        return (base, False) if not labels or classes_of(base) == labels else None
    try:
        found = resolve_target(str(folder) if run is None else run)
        task, told = TASKS[task_of(found)], classes_of(found) if labels else ()
    except InvalidInputError as error:
        if run is None:
            raise
        raise ModelError.several(replace(each, key=None, parameter="run") for each in error.problems) from None
    if task is not known.task:
        raise _unlike(f"it was trained for {task.name}, and the config's task is {known.task.name}", folder, run)
    if told != labels:
        said = f"it tells {', '.join(told) or 'no classes'}, and the rows are of {', '.join(labels)}"
        raise _unlike(said, folder, run)
    return found, bool(found.adapters) or found.own.task is not None


def _unlike(message: str, folder: Path, run: str | None) -> ModelError:
    remedy = "Name a run that was trained on the rows of this config."
    return ModelError(message, where=run or str(folder), parameter="run", remedy=remedy)


def open_compared(known: KnownRun, found: ResolvedTarget, *, tuned: bool, observer: Observer) -> ComparedModel:
    """Load the transformer that is compared with.

    Raises:
        ModelError: Its tokens are not those of the config's model.
    """
    name, write = FINE_TUNED if tuned else BASE, None
    opened: Session | Classifier
    if known.data.renderer.labels:
        opened = open_classifier(ModelRequest(None), found)
        inner, model = opened.loaded.model, telling(opened, name, base=False)
    else:
        opened = open_session(ModelRequest(None), found)
        inner, (model, write) = wrapped_model(opened.model), _writing(known, opened, name)
    tell(observer, *opened.notes)
    loaded, task = opened.loaded, known.task
    if loaded.tokenizer.get_vocab() != known.data.renderer.tokenizer.get_vocab():
        message = "its tokenizer is not that of the config's model: figures of other tokens are no comparison"
        raise _unlike(message, Path(found.base), str(found.adapter or found.base))
    tensors = read_adapter(found.adapter).tensors if found.adapter is not None else {}
    added = sum(tensor.numel() for key, tensor in tensors.items() if ".lora_" in key)
    trained = sum(tensor.numel() for tensor in tensors.values())
    whole = known.shape.total_parameters
    loss = task.loss(inner, loaded.family, loaded.placement.autocast)
    gradients = of_transformer(inner, loss, task, loaded.placement.device)
    return ComparedModel(name, model, whole + added, trained if tensors else whole * tuned, gradients, write)


def _writing(known: KnownRun, session: Session, name: str) -> tuple[EvalModel, Write]:
    """What a session writes, as it is evaluated, and what that takes."""
    voice, longest = session.voice(), known.config.generation.max_new_tokens
    settings = voice.settings(GenerationRequest(temperature=0, num_beams=1, max_new_tokens=longest))

    def write(prompt: Sequence[int], count: int) -> Writing:
        with session.speaking(voice) as model:
            context, began = DecoderState(model), perf_counter()
            without_end = Settings(rules=SamplingParams(), max_new_tokens=count, stop_ids=())
            said = stream(model, voice.tokenizer, prompt, context=context, **without_end)
            next(said)
            tokens, held = context.length, context.cache_bytes
            written = len(said.completion.token_ids)
            seconds, grown = perf_counter() - began, context.length - tokens
            growth = (context.cache_bytes - held) / grown if grown else 0.0
            return Writing(written, seconds, context.cache_bytes, growth)

    return replace(writing(session, voice.name, settings, BATCH_SIZE), name=name), write


def compared_recurrent(model: RecurrentModel, renderer: RowRenderer, longest: int) -> ComparedModel:
    """A recurrent network as it is compared: it answers greedily, `longest` tokens at most, and ends as the rows do."""
    parameters = sum(each.numel() for each in model.network.parameters())

    @torch.inference_mode()
    def read(examples: Sequence[Example]) -> list[RowScore]:
        losses, logits = model.losses(examples, model.embedded(examples))
        if not model.labels:
            parts = torch.split(losses, [example.trained for example in examples])
            return [RowScore(float(part.sum())) for part in parts]
        return of_classes(model.labels, logits, losses)

    def answers(prompts: Sequence[Sequence[int]], _first: int) -> list[Answer]:
        batches = chunks(prompts, BATCH_SIZE)
        return [answer for batch in batches for answer in _answers(model, batch, renderer, longest)]

    compared = EvalModel(model.cell, read, None if model.labels else answers)
    write = None if model.labels else partial(_write, model)
    return ComparedModel(model.cell, compared, parameters, parameters, of_recurrent(model), write)


@torch.inference_mode()
def _answers(
    model: RecurrentModel, prompts: Sequence[Sequence[int]], renderer: RowRenderer, longest: int
) -> list[Answer]:
    """Greedy answers of one batch, token by token from the hidden state."""
    rules, stops = SamplingParams(), frozenset(renderer.stop_ids)
    grown = [PartialCompletion(each, longest, rules, stops, Detokenizer(renderer.tokenizer)) for each in prompts]
    logits, state = model.network.begin(*_numbered(model, prompts))
    while any(answer.ending is None for answer in grown):
        chosen = _likeliest(logits)
        tokens = model.known.tokens[chosen.cpu()].tolist()
        for answer, token in zip(grown, tokens, strict=True):
            if answer.ending is None:
                answer.take(token, 0.0, 0.0, is_cut=False)
        logits, state = model.network.step(chosen, state)
    return [Answer((said := answer.completion()).completion, said.ended_by) for answer in grown]


@torch.inference_mode()
def _write(model: RecurrentModel, prompt: Sequence[int], count: int) -> Writing:
    began = perf_counter()
    logits, state = model.network.begin(*_numbered(model, [prompt]))
    before = _state_bytes(state)
    for _ in range(count - 1):  # the last token is not read
        logits, state = model.network.step(_likeliest(logits), state)
    _likeliest(logits)
    seconds, after = perf_counter() - began, _state_bytes(state)
    return Writing(count, seconds, after, (after - before) / max(1, count - 1))


def _numbered(model: RecurrentModel, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[int]]:
    rows = [model.known.numbers(torch.tensor(list(prompt))) for prompt in prompts]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded.to(model.device), [len(row) for row in rows]


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest of the tokens that are known by themselves, `[rows]`: the others have no one text."""
    return logits.index_fill(1, torch.tensor([OTHERS], device=logits.device), float("-inf")).argmax(1)


def _state_bytes(state: State) -> int:
    parts = state if isinstance(state, tuple) else (state,)
    return sum(part.nbytes for part in parts)
