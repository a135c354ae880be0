"""The honest yardstick: a recurrent network, trained from scratch on a config's rows, beside the fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from loraft.adapters.metadata import ResolvedTarget
from loraft.baselines.baseline_report import (
    BaselineReport,
    ComparedNetwork,
    MeasuredReach,
    PaddedRow,
    SampleAnswers,
    findings_of,
)
from loraft.baselines.compared_model import (
    ComparedModel,
    TimedReading,
    compared_recurrent,
    open_compared,
    target_of,
)
from loraft.baselines.gradient_reach import gradient_reach, of_recurrent, texts_to_measure
from loraft.baselines.recurrent import CELLS, Cell, recurrent_model
from loraft.baselines.train_recurrent import TrainedNetwork, shape_of, train_recurrent
from loraft.config.config_file import takes_path
from loraft.config.schema import RunConfig
from loraft.dataset.source_rows import read_sources
from loraft.errors import ConfigError, Problem
from loraft.evaluation.bootstrap import PairedDifference
from loraft.evaluation.eval_dataset import EvalExample, EvalPurpose, EvaluatedRows, questions_of, with_questions
from loraft.evaluation.evaluator import EvalModel, Evaluation, evaluate
from loraft.evaluation.open_model import chosen_metrics
from loraft.evaluation.past_run import run_of
from loraft.events import Note, Observer, Progress, ignored, tell
from loraft.figures import counted
from loraft.inference.batch_generate import BATCH_SIZE
from loraft.inference.completion import Detokenizer
from loraft.io.resources import memory_errors
from loraft.models.remote_code import as_trusted
from loraft.planning.known_run import KnownRun, known_run
from loraft.tasks import TASKS
from loraft.tasks.training_metadata import SourceFormat
from loraft.tokenization.examples import Example

WRITTEN_TOKENS = 100
ROWS_ALONE, SAMPLES, BEGINNING = 20, 2, 8
UNTRAINED = "{}, untrained"
OUT_OF_MEMORY, SHORTER = "the device ran out of memory", "Set a smaller one: longer rows are then left out or cut."


@as_trusted
@takes_path
def train_baseline(
    config: RunConfig,
    *,
    name: str = "run",
    run: str | None = None,
    cells: Sequence[Cell] = ("lstm",),
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> BaselineReport:
    """Train recurrent networks from scratch on the rows of a config, and compare them with what was fine-tuned.

    The rows, their tokens, what is learned of them and the figures are those of the run. The learning rate and the end
    of training are chosen by the held-out rows.

    Args:
        config: The run, or the path of its file.
        name: What its runs are called where `training.output_dir` is not set; where a file is given, its name.
        run: The run, adapter or model to compare with; None is the newest run of the config, or its base where there
            is none yet.
        cells: The kinds of networks, each once: `lstm`, `rnn`.
        observer: Is told how far it is.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: Before anything is trained, with every problem found.
        NonFiniteError: A loss is not a number.
        OutOfMemoryError: The device is too small for the networks or the rows.
    """
    _refuse_unfit(config, cells)
    known = known_run(config)
    with memory_errors(OUT_OF_MEMORY, key="data.max_length", remedy=SHORTER):
        return _report(known, target_of(known, name, run), run, cells, observer)


def _report(
    known: KnownRun,
    target: tuple[ResolvedTarget, bool] | None,
    run: str | None,
    cells: Sequence[Cell],
    observer: Observer,
) -> BaselineReport:
    tell(observer, *(known.placement.notes if target is None else ()), *_about_target(known, target, run))
    beside = [] if target is None else [open_compared(known, target[0], tuned=target[1], observer=observer)]
    trained = [_trained(known, cell, observer) for cell in dict.fromkeys(cells)]
    renderer, longest = known.data.renderer, known.config.generation.max_new_tokens
    models = [*beside, *(compared_recurrent(each.model, renderer, longest) for each in trained)]
    timed, rows = list(map(TimedReading, models)), _rows(known)
    figures, differences = _evaluated(rows, timed, has_beside=bool(beside), observer=observer)
    report = BaselineReport(
        task=known.task.name,
        train_rows=len(known.data.train),
        rows=len(rows.items),
        compared_with=None if target is None else str(target[0].adapter or target[0].base),
        networks=tuple(_network(*each, rows) for each in zip(models, timed, figures, strict=True)),
        training=tuple(each.training for each in trained),
        differences=differences,
        gradient=_reach(known, beside, trained, observer),
        samples=tuple(_samples(rows, [each.model for each in timed])),
        findings=(),
    )
    return replace(report, findings=tuple(findings_of(report)))


def _refuse_unfit(config: RunConfig, cells: Sequence[str]) -> None:
    task, problems = TASKS[config.task], []
    if not cells or not set(cells) <= set(CELLS):
        message = f"the networks are {' and '.join(CELLS)}, and not {', '.join(cells) or 'none'}"
        problems.append(Problem(message, parameter="cells"))
    needs = None
    if task.compares_answers:
        needs = "which answer is better is learned by a model that answers already, and not from scratch"
    elif task.generates and not task.joins_prompts:
        needs = "a source and its target need two networks and what joins them"
    if needs is not None:
        remedy = "Those that go on with a text and classifiers have one."
        problems.append(Problem(f"{needs}: there is no such baseline", key="task", remedy=remedy))
    if config.data.eval is None:
        message = "no rows are held out, which tell when the network has learned what it can"
        problems.append(Problem(message, key="data.eval", remedy="Hold a share out, such as data.eval: 0.2."))
    if config.data.streaming:
        problems.append(
            Problem("the network reads its rows again and again", key="data.streaming", remedy="Leave it out.")
        )
    if problems:
        raise ConfigError.several(problems)


def _about_target(known: KnownRun, target: tuple[ResolvedTarget, bool] | None, run: str | None) -> Iterator[str]:
    """What there is to say about what stands beside."""
    if target is None:
        yield (
            "there is no run of this config yet, and its base has no head for these classes: the network stands alone; "
            "after `loraft.train(CONFIG)` it stands beside the fine-tuned model"
        )
    elif not target[1]:
        if run is None:
            yield "there is no run of this config yet: its base stands beside, not fine-tuned"
    else:
        past = run_of(target[0])
        if past is not None and past.fingerprint not in (None, known.data.fingerprint):
            yield "the run learned other rows or tokens than the config names: perhaps what is held out here"


def _trained(known: KnownRun, cell: Cell, observer: Observer) -> TrainedNetwork:
    data, labels = known.data, known.data.renderer.labels
    shape, seed = shape_of(cell, classifies=bool(labels)), known.config.seed
    device = known.placement.device
    untrained = recurrent_model(shape, data.train, known.task, labels, known.shape.vocabulary, seed=seed, device=device)
    found = train_recurrent(untrained, data.train, data.eval, seed=seed, observer=observer)
    done = found.training
    tried = ", ".join(f"{each.learning_rate:g} → {each.loss:.3f}" for each in done.tried)
    ended = "the loss on the held-out rows fell no more" if done.plateau else "the most there are"
    observer(Note(f"{cell}: rates tried by the loss on the held-out rows: {tried}; {done.learning_rate:g} is kept"))
    rounds = counted(done.rounds, "round")
    observer(Note(f"{cell}: {rounds}, {ended}; the weights are those of round {done.best_round}"))
    return found


def _rows(known: KnownRun) -> EvaluatedRows:
    """The held-out rows, and what they ask."""
    data, labels = known.config.data, known.data.renderer.labels
    config = known.config.model_copy(update={"data": data.model_copy(update={"labels": labels or data.labels})})
    read = read_sources(config)
    questions, _ = questions_of(read.train if isinstance(data.eval, float) else read.held_out, config)
    purpose = EvalPurpose(known.task, SourceFormat(), labels)
    items = with_questions(known.data.eval, known.data.eval_counts, questions)
    return EvaluatedRows(items, "the held-out rows", purpose, known.data.renderer, ())


def _evaluated(
    rows: EvaluatedRows, models: Sequence[TimedReading], *, has_beside: bool, observer: Observer
) -> tuple[list[Mapping[str, float]], dict[str, Mapping[str, PairedDifference]]]:
    """The figures of each model; and by the cell those of what stands beside minus those of the network."""
    metrics = chosen_metrics(None, rows.purpose.task, rows.references)

    def judged(model: EvalModel, other: EvalModel | None) -> Evaluation:
        with memory_errors(OUT_OF_MEMORY, key="data.max_length", remedy=SHORTER, rewords=True):
            return evaluate(rows, model, other, metrics=metrics, batch_size=BATCH_SIZE, output=None, observer=observer)

    first, *others = (each.model for each in models)
    if not has_beside:
        return [judged(each.model, None).measured.figures for each in models], {}
    found = {other.name: judged(first, other) for other in others}
    of_networks = [each.baseline.figures for each in found.values() if each.baseline is not None]
    of_first = next(iter(found.values())).measured.figures
    return [of_first, *of_networks], {cell: each.differences for cell, each in found.items()}


def _network(
    compared: ComparedModel, timed: TimedReading, figures: Mapping[str, float], rows: EvaluatedRows
) -> ComparedNetwork:
    """A network's figures, with what one answer takes."""
    writing, alone = None, None
    if compared.write is None:
        few = [item.example for item in rows.items[:ROWS_ALONE]]
        began = perf_counter()
        for example in few:
            compared.model.read([example])
        alone = (perf_counter() - began) / len(few)
    else:
        asking = next((item for item in rows.items if item.question is not None), rows.items[0])
        writing = compared.write(_prompt(rows, asking), WRITTEN_TOKENS)
    speed, padded = timed.tokens / timed.seconds, _padded(compared.model, [item.example for item in rows.items])
    return ComparedNetwork(compared.name, compared.parameters, compared.trained, speed, alone, padded, writing, figures)


def _padded(model: EvalModel, examples: Sequence[Example]) -> PaddedRow:
    shortest, longest = (choose(examples, key=lambda each: len(each.input_ids)) for choose in (min, max))
    (alone,), (beside, _) = model.read([shortest]), model.read([shortest, longest])
    return PaddedRow(len(longest.input_ids) - len(shortest.input_ids), alone.loss, beside.loss)


def _reach(
    known: KnownRun, beside: Sequence[ComparedModel], trained: Sequence[TrainedNetwork], observer: Observer
) -> MeasuredReach:
    """The gradients of every network, trained and not, on the same texts."""
    classified = bool(known.data.renderer.labels)
    texts = texts_to_measure(known.data.eval, classified=classified, context=known.shape.context)
    if texts.distances < 2:
        return MeasuredReach(len(texts.examples), texts.length)
    networks = {each.name: each.gradients for each in beside}
    for each in trained:
        networks[each.model.cell] = of_recurrent(each.model)
        networks[UNTRAINED.format(each.model.cell)] = of_recurrent(each.untrained)
    found = []
    for done, (name, gradients) in enumerate(networks.items()):
        observer(Progress("gradients by distance", done, len(networks)))
        found.append(gradient_reach(name, texts, gradients))
    return MeasuredReach(len(texts.examples), texts.length, tuple(found))


def _samples(rows: EvaluatedRows, models: Sequence[EvalModel]) -> Iterator[SampleAnswers]:
    """The first rows and what each model says; of plain text, which asks nothing, how each goes on with a beginning."""
    asking = [item for item in rows.items if item.question is not None] or rows.items
    for item in asking[:SAMPLES]:
        prompt, answers = _prompt(rows, item), {}
        for model in models:
            said = model.answers([prompt], 0)[0] if model.answers else model.read([item.example])[0].answer
            answers[model.name] = "" if said is None else said.text
        if item.question is not None:
            yield SampleAnswers(item.example.where, item.question.shown, item.question.reference, answers)
        else:
            spell = Detokenizer(rows.renderer.tokenizer).spell
            rest = spell(item.example.input_ids[len(prompt) :])
            yield SampleAnswers(item.example.where, spell(prompt), rest, answers)


def _prompt(rows: EvaluatedRows, item: EvalExample) -> list[int]:
    """What an answer to a row follows: of plain text a few tokens."""
    return item.example.input_ids[:BEGINNING] if item.question is None else rows.prompt_ids(item)
