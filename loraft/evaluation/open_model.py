"""What a verb works on, opened: sessions that answer, classifiers, what is evaluated of either, and by which figures.

Generation, prediction, evaluation and training know nothing of one another; here they are put together for `api`, whose
functions then read as a table of contents.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.resolve_target import classes_of, resolve_target, task_of
from loraft.errors import AdapterError, DataError, ModelError, lacking
from loraft.evaluation.eval_dataset import EvalPurpose, EvalSource, EvaluatedRows, rows_of, unasked_as_trained
from loraft.evaluation.evaluator import Answer, EvalModel, RowScore
from loraft.evaluation.metrics import is_valid_json
from loraft.evaluation.past_run import run_of
from loraft.events import Observer, ignored, tell
from loraft.inference.classifier import Classifier, open_classifier, refuse_no_classifier
from loraft.inference.engine import Settings, complete_batch
from loraft.inference.prompt_limits import beyond_training, prompt_limit
from loraft.inference.requests import AnyModel, GenerationRequest, ModelRequest
from loraft.inference.session import BASE, Session, in_languages, open_session, seed_of_row, task_of_base
from loraft.models.modules import wrapped_model
from loraft.tasks import METRIC_FACTS, TASKS
from loraft.tasks.batches import BatchLayout
from loraft.tasks.task import ROUGE, Task
from loraft.tokenization.examples import Example

Opened = tuple[EvaluatedRows, list[EvalModel]]
"""Rows as tokens, what is evaluated on them, and its base where that is wanted."""
ANSWERS = "{} answers; {} would with `compare`, or in a chat"
MEASURED = "{} is measured, and {} not: give each alone as `adapters`"


class RequestedModel:
    """What a caller asks for, a name or a folder alone as a target; what it means is looked up once, when needed."""

    def __init__(self, model: AnyModel) -> None:
        self.choice = model if isinstance(model, ModelRequest) else ModelRequest(os.fspath(model))

    @cached_property
    def found(self) -> ResolvedTarget:
        """What it means."""
        return resolve_target(self.choice.target, self.choice.adapters, base_model=self.choice.base_model)

    @property
    def source_language(self) -> str | None:
        """The language of what an encoder-decoder reads, as rows of translations call it; None where nobody says."""
        return in_languages(self.found.metadata.sources, self.choice).source_lang

    @property
    def learned_columns(self) -> Mapping[str, str] | None:
        """What the rows of its run called our columns; None where it was trained, and no run is near that says so."""
        if self.found.metadata.task is None:  # a base, which may lie beside some config
            return {}
        run = run_of(self.found)
        return run.columns if run is not None else None

    def session(self) -> Session:
        """It, loaded and ready to answer."""
        return open_session(self.choice, self.found)

    def classifier(self, observer: Observer) -> Classifier:
        """It, loaded and ready to tell classes; what there is to say about it is told."""
        opened = open_classifier(self.choice, self.found)
        tell(observer, *opened.notes)
        return opened


def purpose_of(model: RequestedModel, *, baseline: bool, limit: int | None) -> EvalPurpose:
    """What a target is for, as far as its record and its config tell, before any weight is loaded."""
    found, choice = model.found, model.choice
    task = TASKS[task_of(found)]
    labels = () if task.generates else classes_of(found)
    if not task.generates:
        refuse_no_classifier(found, labels, choice.target)
    if not task.translates and (choice.source_lang or choice.target_lang):
        message = f"its task is {task.name}, and only what translates has a source and a target language"
        raise ModelError(message, parameter="source_lang" if choice.source_lang else "target_lang")
    if labels and baseline and classes_of(replace(found, adapters=())) != labels:
        raise _no_baseline(found.base)
    return EvalPurpose(task, in_languages(found.metadata.sources, choice), labels, baseline, limit)


def _no_baseline(base: str) -> AdapterError:
    message = f"the head that tells the classes was trained with the adapter, and {base} has none: it would guess"
    return AdapterError(message, parameter="baseline", remedy="Leave it out.")


def generating(
    model: RequestedModel, source: EvalSource, options: GenerationRequest, batch_size: int, observer: Observer
) -> Opened:
    """The rows as what writes text reads them; it, and its base."""
    session = model.session()
    tell(observer, *session.notes, *to_be_told(session, options, MEASURED))
    told = iter((observer, ignored))  # of the base the same would be said
    made = partial(writing, session, batch_size=batch_size)
    return asked(session, source, options, observer, lambda *of_one: made(*of_one, observer=next(told)))


def asked(
    session: Session, source: EvalSource, options: GenerationRequest, observer: Observer,
    made: Callable[[str, Settings], EvalModel],
) -> Opened:  # fmt: skip
    """The rows as a session reads them; what speaks first in it, and its base, as `made` has them."""
    voice = session.voice()
    rows = rows_of(source, voice.tokenizer, positions=prompt_limit(session.model))
    tell(observer, *rows.notes, *unasked_as_trained(rows, voice.renderer.system_prompt))
    names = (voice.name, BASE) if source.purpose.baseline else (voice.name,)
    return rows, [made(name, voice.settings(options)) for name in names]


def classifying(model: RequestedModel, source: EvalSource, options: GenerationRequest, observer: Observer) -> Opened:
    """The same of a classifier; its base is refused where its files lack the head."""
    classifier = model.classifier(observer)
    if source.purpose.baseline and classifier.loaded.new_modules:
        raise _no_baseline(classifier.loaded.name)
    rows = rows_of(source, classifier.loaded.tokenizer, positions=classifier.context)
    unused = ("a classifier generates nothing: `max_new_tokens` is not used",) if options.max_new_tokens else ()
    tell(observer, *rows.notes, *unused)
    named = [(classifier.name or BASE, False), *([(BASE, True)] if source.purpose.baseline else [])]
    return rows, [telling(classifier, name, base=base) for name, base in named]


def writing(
    session: Session, name: str, settings: Settings, batch_size: int, observer: Observer = ignored
) -> EvalModel:
    """The model of a session with the adapter of that name active, or none for the base, as it is evaluated.

    The base is asked as its adapter is: the same tokens, the same ends of an answer. `observer` is told once where
    answers may leave the positions of training.
    """
    voice, placement, task = session.voice(name), session.loaded.placement, task_of_base(session.loaded)
    loss = task.loss(wrapped_model(session.model), session.loaded.family, placement.autocast)

    def read(examples: Sequence[Example]) -> list[RowScore]:
        with session.speaking(voice), torch.inference_mode():
            batch = task.collate(examples, BatchLayout()).to(placement.device)
            losses = loss.of_texts(batch).tolist()
        return [RowScore(each) for each in losses]

    untold = [observer]

    def answers(prompts: Sequence[Sequence[int]], first: int) -> list[Answer]:
        for note in beyond_training(session.model, prompts, settings["max_new_tokens"]) if untold else ():
            tell(untold.pop(), f"{note}; no more is told of such")
        drawn: Settings = {**settings, "seed": seed_of_row(settings["seed"], first)}
        with session.speaking(voice) as speaking:
            completed = complete_batch(speaking, voice.tokenizer, prompts, **drawn, batch_size=batch_size)
        said = voice.renderer.said
        return [Answer(said(each.completion, each.token_ids), each.ended_by) for each in completed]

    return EvalModel(name, read, answers)


def telling(classifier: Classifier, name: str, *, base: bool) -> EvalModel:
    """A classifier, or its base without the adapter, as it is evaluated."""

    def read(examples: Sequence[Example]) -> list[RowScore]:
        with classifier.speaking(base=base):
            scores = classifier.scores(examples)
        right = torch.tensor([example.labels[0] for example in examples])
        return of_classes(classifier.labels, scores, cross_entropy(scores, right, reduction="none"))

    return EvalModel(name, read)


def of_classes(labels: Sequence[str], scores: Tensor, losses: Tensor) -> list[RowScore]:
    """What a classifier makes of rows: of their scores `[rows, classes]`, and losses `[rows]` in nats."""
    shares = [dict(zip(labels, each, strict=True)) for each in scores.softmax(1).tolist()]
    answers = [Answer(max(each, key=each.__getitem__), probabilities=each) for each in shares]
    return [RowScore(*each) for each in zip(losses.tolist(), answers, strict=True)]


def to_be_told(session: Session, options: GenerationRequest, of_several: str = ANSWERS) -> Iterator[str]:
    """What of that which was asked for has no effect; `of_several` says which adapter is used, and which are not."""
    if len(session.adapters) > 1:
        first, *silent = session.adapters
        yield of_several.format(first, " and ".join(silent))
    if options.system and session.voice().renderer.reads_source:
        yield "the model reads a source and no conversation: the system prompt is not used"
    elif options.system and session.voice().renderer.chat_template is None:
        yield "the tokenizer has no chat template, which alone can print a system prompt: it is not used"


GROUPS = {"rouge": ROUGE}


def known_metrics(names: Sequence[str], task: Task | None = None) -> tuple[str, ...]:
    """The figures that are meant, each once, groups taken apart; for an unknown one the nearest of `task` is named."""
    every = (*METRIC_FACTS, *GROUPS)
    by_lower_case = {name.lower(): name for name in every}
    found: list[str] = []
    for given in names:
        name = by_lower_case.get(given.strip().lower().replace("-", "_"))
        if name is None:
            offered = every if task is None else _names(task)
            begin = [each for each in offered if each.lower().startswith(given.strip().lower())]
            nearest = next(iter(begin or difflib.get_close_matches(given.strip().lower(), offered, n=1)), None)
            remedy = f"{f'Did you mean {nearest}? ' if nearest else ''}The metrics are {', '.join(offered)}."
            raise DataError(f"there is no metric {given.strip()!r}", parameter="metrics", remedy=remedy)
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def chosen_metrics(asked: Sequence[str] | None, task: Task, references: Collection[str]) -> tuple[str, ...]:
    """The figures besides the loss: those that were asked for, if there are such, or what suits task and references."""
    metrics = task.metrics
    if asked is None:
        if not references:
            return ()
        _require_packages(metrics.default, task)
        # A JSON object or list: a bare number is JSON too, but says nothing of what was meant.
        all_json = all(text.lstrip().startswith(("{", "[")) and is_valid_json(text) for text in references)
        return metrics.default + (metrics.where_json if all_json else ())
    wanted = tuple(name for name in asked if name not in metrics.always)
    if unfit := [name for name in wanted if name not in metrics.offered]:
        others = [other.name for other in TASKS.values() if unfit[0] in _names(other)]
        message = f"{unfit[0]} measures {', '.join(others)}, and this is {task.name}"
        raise DataError(message, parameter="metrics", remedy=f"There are {', '.join(_names(task))}.")
    if wanted and not references:
        message = f"{wanted[0]} compares answers with references, and no row has one"
        remedy = (
            "Plain text has only a loss; rows of prompt and completion have references, and of messages those that end "
            "with an answer in words alone: no call of a tool, no thought apart."
        )
        raise DataError(message, parameter="metrics", remedy=remedy)
    _require_packages(wanted, task)
    return wanted


def _require_packages(names: Sequence[str], task: Task) -> None:
    needed = {task.metrics.offered[name].package: name for name in reversed(names)}
    absent = (lacking(package, name, parameter="metrics") for package, name in needed.items() if package)
    if problems := [problem for problem in absent if problem is not None]:
        raise DataError.several(problems)


def _names(task: Task) -> tuple[str, ...]:
    """Every metric of a task."""
    return (*task.metrics.always, *task.metrics.offered)
