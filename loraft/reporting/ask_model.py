"""A trained model asked beside its base: loss and figures, answers, what was forgotten, hard rows, moved layers.

An adapter is loaded once with its base, which is the same model with the adapter switched off. A model that was trained
whole is read first and let go before its base is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from loraft.adapters.resolve_target import classes_of
from loraft.config.sections import DataSource
from loraft.errors import InvalidInputError
from loraft.evaluation.eval_dataset import EvalSource, learned_source, read_eval_source
from loraft.evaluation.evaluator import RowScore, Tallies
from loraft.evaluation.open_model import RequestedModel, purpose_of, writing
from loraft.evaluation.past_run import PastRun
from loraft.evaluation.subjects import opened, weighing
from loraft.events import Event, Note, Observer
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import BASE, open_session
from loraft.inspection.layers_report import inspect_layers
from loraft.reporting.model_findings import AnswerBeside, FigureBeside, Forgetting, HardRow, ModelFindings, MovedLayer
from loraft.reporting.model_readings import (
    ModelReadings,
    ReportRows,
    class_shares,
    general_examples,
    read_rows_of,
    spread,
)
from loraft.tasks.task import Reference
from loraft.tokenization.examples import Example

HARD = 10
"""So many rows with the highest loss are told."""
MOVED = 10
"""So many layers that moved most are told."""
LONGEST = 300
"""So many characters of a row are told; of a longer one its beginning and its end."""


@dataclass(frozen=True)
class AskedOfModel:
    """How much is asked of the model.

    Attributes:
        data: Rows to compare it with its base on; None takes those that the run held out.
        limit: At most so many rows of either kind are read, evenly over all of them.
        answers: So many answers are shown before and after.
        max_new_tokens: The most tokens of an answer.
        batch_size: Rows at a time: speed and memory alone.
    """

    data: DataSource | None = None
    limit: int = 500
    answers: int = 10
    max_new_tokens: int = 128
    batch_size: int = 8


def findings_of(run: PastRun, target: Path, asked: AskedOfModel, observer: Observer) -> ModelFindings:
    """What the model in a folder tells, of a run or of one of its checkpoints.

    Raises:
        InvalidInputError: Its rows or its base cannot be read.
        RunError: While it reads: memory ran out, or a loss is not finite.
    """
    requested, notes = RequestedModel(str(target)), list[str]()

    def heard(event: Event) -> None:
        """Keeps what there is to tell for the report, and passes on how far it is."""
        notes.append(event.text) if isinstance(event, Note) else observer(event)

    purpose = purpose_of(requested, baseline=False, limit=None)
    has_adapter, bare = bool(requested.found.adapters), replace(requested.found, adapters=())
    # A base without the head that tells the classes has nothing to say.
    with_base = has_adapter and (purpose.task.generates or classes_of(bare) == purpose.labels)
    is_compared = asked.data is not None or run.config.data.eval is not None
    purpose = replace(purpose, baseline=with_base)
    if is_compared:
        source = read_eval_source(run, requested.found.base, asked.data, purpose)
    else:
        source = learned_source(run, purpose)
    read, trained, base = _both(requested, source, asked, heard, is_compared=is_compared)
    if base is None and (read.held_out or read.general):
        base = _stand_in(run, requested, read, asked, heard, notes)
    moved = _moved(target, notes) if has_adapter else ()
    if not has_adapter:
        notes.append("the model was trained whole: how far a layer moved is told of adapters alone")
    return _put_together(read, trained, base, moved, notes)


def _both(
    requested: RequestedModel, source: EvalSource, asked: AskedOfModel, observer: Observer, *, is_compared: bool
) -> tuple[ReportRows, ModelReadings, ModelReadings | None]:
    """The rows, and what the trained model makes of them, and its base where they are one model; both are let go."""
    options = GenerationRequest() if source.purpose.labels else _greedy(asked)
    rows, models = opened(requested, source, options, asked.batch_size, observer)
    held_out = spread(rows.items, asked.limit) if is_compared else []
    learned = rows.learned if is_compared else [item.example for item in rows.items]
    read = ReportRows(
        rows=rows,
        held_out=held_out,
        answered=spread([item for item in held_out if item.question is not None], asked.answers),
        learned=spread(learned, asked.limit),
        learned_rows=len(learned),
        general=general_examples(rows.renderer),
    )
    trained = read_rows_of(models[0], read, asked.batch_size, observer, learned=True)
    if len(models) == 1:
        return read, trained, None
    return read, trained, read_rows_of(models[1], read, asked.batch_size, observer, learned=False)


def _greedy(asked: AskedOfModel) -> GenerationRequest:
    return GenerationRequest(temperature=0, num_beams=1, max_new_tokens=asked.max_new_tokens)


def _stand_in(
    run: PastRun, requested: RequestedModel, read: ReportRows, asked: AskedOfModel, observer: Observer, notes: list[str]
) -> ModelReadings | None:
    """What is beside a trained model that has no base in it: the base loaded anew, or the shares of the classes."""
    labels, section = read.rows.purpose.labels, run.config.model
    if labels:
        notes.append("the base has no head that tells these classes: beside it stands what knows their shares alone")
        counted = read.rows.learned or [item.example for item in read.rows.items]
        shares = class_shares(labels, counted)
        return read_rows_of(shares, read, asked.batch_size, observer, learned=False)
    found = replace(requested.found, base=section.name_or_path, revision=section.revision)
    try:
        session = open_session(ModelRequest(section.name_or_path), found)
    except InvalidInputError as error:
        notes.append(f"the base is not at hand, and nothing is compared with it: {error.problems[0].message}")
        return None
    settings = session.voice(BASE).settings(_greedy(asked))
    if read.rows.purpose.task.compares_answers:
        model = weighing(session, BASE, settings, before=BASE, config=run.config, batch_size=asked.batch_size)
    else:
        model = writing(session, BASE, settings, asked.batch_size)
    return read_rows_of(model, read, asked.batch_size, observer, learned=False)


def _put_together(
    read: ReportRows, trained: ModelReadings, base: ModelReadings | None, moved: Sequence[MovedLayer], notes: list[str]
) -> ModelFindings:
    general = sum(example.trained for example in read.general)
    forgotten = None
    if base is not None and general:
        of_base, of_trained = (sum(score.loss for score in each.general) / general for each in (base, trained))
        forgotten = Forgetting(of_base, of_trained, general)
    return ModelFindings(
        rows=read.rows.called if read.held_out else None,
        rows_read=len(read.held_out),
        base=base.name if base is not None else None,
        figures=_beside(read, base, trained) if base is not None and read.held_out else {},
        answers=_answers(read, base, trained),
        forgotten=forgotten,
        hard_held_out=_hard(read, [item.example for item in read.held_out], trained.held_out),
        hard_learned=_hard(read, read.learned, trained.learned),
        learned_read=len(read.learned),
        learned_rows=read.learned_rows,
        moved=moved,
        notes=tuple(notes),
    )


def _beside(read: ReportRows, base: ModelReadings, trained: ModelReadings) -> Mapping[str, FigureBeside]:
    """The figures of both on the held-out rows, with the paired bootstrap of their difference."""
    purpose, asking = read.rows.purpose, sum(item.question is not None for item in read.held_out)
    names = ("accuracy", "macro_f1") if purpose.labels and asking else ()
    before, after = (Tallies(each.name, names, purpose, keep=True) for each in (base, trained))
    for item, *scores in zip(read.held_out, base.held_out, trained.held_out, strict=True):
        for tallies, score in zip((before, after), scores, strict=True):
            tallies.add(item, score)
    apart = after.minus(before, rows=len(read.held_out), references=asking)
    first, second = before.figure.figures, after.figure.figures
    return {name: FigureBeside(first[name], second[name], *astuple(each)) for name, each in apart.items()}


def _answers(read: ReportRows, base: ModelReadings | None, trained: ModelReadings) -> Sequence[AnswerBeside]:
    before = base.answers if base is not None else [None] * len(read.answered)
    return [
        AnswerBeside(item.example.where, _asked(item.question), item.question.reference, old, new)
        for item, old, new in zip(read.answered, before, trained.answers, strict=True)
        if item.question is not None
    ]


def _asked(question: Reference) -> str:
    """What a row asks, as a person reads it: the turns of a conversation each with its speaker where there are more."""
    if isinstance(question.asked, str):
        return "\n".join(text for text in (question.asked, question.second) if text is not None)
    turns = question.asked
    return turns[0].content if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _hard(read: ReportRows, examples: Sequence[Example], scores: Sequence[RowScore]) -> Sequence[HardRow]:
    """The rows with the highest loss a trained token, or a row where that is what counts, the highest first."""
    labels, renderer, weight_of = read.rows.purpose.labels, read.rows.renderer, read.rows.purpose.task.weight_of
    by_loss = sorted(zip(examples, scores, strict=True), key=lambda pair: -pair[1].loss / weight_of(pair[0]))
    found = []
    for example, score in by_loss[:HARD]:
        told = score.answer.text if score.answer is not None else None
        label = labels[example.labels[0]] if labels else None
        text = _shortened(renderer.marked(example))
        found.append(HardRow(example.where, score.loss / weight_of(example), text, label, told))
    return found


def _shortened(text: str) -> str:
    """A text that is longer than 300 characters by its beginning and its end."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"


def _moved(target: Path, notes: list[str]) -> Sequence[MovedLayer]:
    """The layers that the adapter moved most, by ‖ΔW‖ over ‖W‖ where the base is at hand, else by ‖ΔW‖."""
    try:
        (updates,) = inspect_layers(str(target)).adapters
    except InvalidInputError as error:
        notes.append(f"how far each layer moved is not told: {error.problems[0].message}")
        return ()
    several = len({move.stack for move in updates.layers}) > 1
    found = [
        MovedLayer(f"{move.stack} {move.index}" if several else str(move.index), move.norm, move.relative)
        for move in updates.layers
    ]
    return sorted(found, key=lambda move: (-(move.relative or 0.0), -move.norm))[:MOVED]
