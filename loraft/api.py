"""The table of contents of the program: one short function a verb.

`preview` shows rows as the model will see them, `check` tells what `train` would do, and `train` does it. `generate`
runs what came of it: for one prompt as it comes, `complete` for several, `answer_file` for a file, `compare` beside its
base, `open_chat` for a conversation. `predict` and `predict_file` tell the classes of texts. `evaluate` measures what
was trained, `merge` folds it into its base, and `inspect_layers` looks into it. Each takes plain values and gives plain
values back; what there is to tell on the way goes to an observer, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.resolve_target import resolve_target
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource, LoraSection
from loraft.errors import AdapterError, ConfigError
from loraft.evaluation.eval_dataset import read_eval_source
from loraft.evaluation.evaluation_result import Evaluation
from loraft.evaluation.evaluator import evaluate as measure
from loraft.evaluation.open_model import (
    classifying,
    generating,
    learned_columns,
    opened,
    opened_classifier,
    purpose_of,
    run_of,
    tell,
    to_be_told,
)
from loraft.evaluation.task_metrics import chosen_metrics, known_metrics
from loraft.events import Note, Observer, Progress
from loraft.inference.batch_generate import ADDED, BATCH_SIZE, AnsweredFile, answer_questions, read_questions
from loraft.inference.cache_comparison import CacheComparison, compare_cache
from loraft.inference.compare_adapters import AdapterComparison
from loraft.inference.compare_adapters import compare as compare_voices
from loraft.inference.completion import Completion, Finish
from loraft.inference.conversation import ChatSession
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import Stream, Token, complete_batch, stream
from loraft.inference.predict_file import BATCH_SIZE as TEXTS_AT_ONCE
from loraft.inference.predict_file import PredictedFile, check_output, predict_rows, read_texts
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.sampling_params import SamplingParams
from loraft.inference.session import source_language
from loraft.inference.trace import Trace
from loraft.inference.tracer import Tracer
from loraft.inspection.layers_report import LayersReport, report_layers
from loraft.inspection.row_preview import Preview, Split, preview_rows
from loraft.io.jsonl import AskedRows, check_jsonl
from loraft.io.memory_errors import memory_errors
from loraft.merging.adapter_weights import resolve_weighted, weighted
from loraft.merging.merge_report import MergeReport
from loraft.merging.output_dir import chosen_folder
from loraft.merging.prepare_merge import BaseChoice, MergedDtype, prepare_merge
from loraft.merging.verified_merge import merge_and_verify
from loraft.merging.verify import LEAST_POSITIONS
from loraft.rows.formats import Message
from loraft.tokenization.token_strings import Pieces
from loraft.training.check_report import CheckReport, report
from loraft.training.run_dir import (
    RunFolder,
    check_disk,
    choose_run_folder,
    left_unfinished,
    refuse_own_inputs,
    refuse_taken,
)
from loraft.training.run_plan import RunPlan, plan_run
from loraft.training.stop_signals import SaveRequests
from loraft.training.trainer import TrainResult, run_plan

TAKEN = "{} holds a run already: `loraft.train` goes on with it by `resume`, and replaces it by `overwrite`"
AS_SAVED = GenerationRequest()
GREEDY = GenerationRequest(temperature=0, num_beams=1)


def _ignore(_: object) -> None:
    """The observer of a caller who has none."""


def check(config: RunConfig, *, name: str = "run", verbose: bool = False) -> CheckReport:
    """Everything that can be known of a run before its first step, without loading a weight.

    Args:
        config: The run.
        name: What runs of this config are called where `training.output_dir` is not set.
        verbose: Name each row that stands in the data twice.

    Raises:
        InvalidInputError: With every problem found; `train` refuses the same, and a folder that holds a run.
    """
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=False))
    refuse_taken(folder, resume=folder.holds_run, overwrite=False)
    plan = plan_run(config)
    check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
    found = report(plan, folder.path, verbose=verbose)
    return replace(found, notes=(*found.notes, TAKEN.format(folder.path))) if folder.holds_run else found


def preview(config: RunConfig, *, count: int = 5, split: Split = "train", places: Sequence[str] = ()) -> Preview:
    """Rows as the model will see them: tokens, what of them is learned, which rows share a batch.

    Args:
        config: The run.
        count: How many rows, from the first.
        split: Whose rows: those that are trained on, or those held out.
        places: Show these rows instead: by line or number, or by place as loraft prints it.

    Raises:
        InvalidInputError: The tokenizer or the data cannot be used, or there is no such row.
    """
    return preview_rows(config, count=count, split=split, places=places)


def train(
    config: RunConfig,
    *,
    name: str = "run",
    resume: bool = False,
    resume_anyway: bool = False,
    overwrite: bool = False,
    observer: Observer = _ignore,
    command: Sequence[str] = (),
) -> TrainResult:
    """Train as the config says, and save what was trained.

    Args:
        config: The run.
        name: What runs of this config are called where `training.output_dir` is not set.
        resume: Go on from the newest checkpoint that verifies.
        resume_anyway: Go on even though config, data or base have changed; implies `resume`.
        overwrite: Replace the run that the folder holds.
        observer: Is told what happens.
        command: How the run was started, for its manifest.

    Raises:
        InvalidInputError: Before the first step, with every problem found.
        RunError: While running; the checkpoints before it stand.
        Interrupted: By a signal; the state was saved. SIGUSR1 stops nothing: a checkpoint is saved after the next step.
    """
    resume = resume or resume_anyway
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=resume))
    refuse_taken(folder, resume=resume, overwrite=overwrite)
    if overwrite:
        refuse_own_inputs(folder, config)
    if config.training.output_dir is None and not resume:
        tell(observer, *left_unfinished(folder.path, name))
    with SaveRequests() as save_requests:
        plan = plan_run(config)
        check_disk(folder.path, plan.memory, keep=config.training.save_total_limit)
        folder.open()
        try:
            return run_plan(
                plan,
                folder,
                resume=resume,
                resume_anyway=resume_anyway,
                overwrite=overwrite,
                observer=observer,
                save_requests=save_requests,
                answerer=lambda adapted: _answerer(adapted, plan),
                command=command,
            )
        finally:
            folder.close()


def _answerer(adapted: AdaptedModel, plan: RunPlan) -> Callable[[str], str]:
    """Answers to `training.sample_prompts` as `generate` would give them: greedy, whatever the defaults are."""
    renderer = plan.data.renderer
    rules = SamplingParams().beginning_with(plan.task.first_tokens(adapted.model, renderer))

    def answer(prompt: str) -> str:
        asked = [Message("user", prompt)]
        system = renderer.system_prompt
        ids = renderer.prompt_ids([Message("system", system), *asked] if system else asked)
        limit = plan.config.generation.max_new_tokens
        answered = stream(
            adapted.model, plan.tokenizer, ids, rules=rules, max_new_tokens=limit, stop_ids=renderer.stop_ids
        )
        return answered.completion.completion

    return answer


@dataclass(frozen=True, eq=False)
class Answering(Iterator[Token]):
    """An answer that is on its way: iterate over its tokens, then read `completion`.

    Attributes:
        stream: The tokens as they come.
        notes: What was decided and found, a sentence each.
        tracer: Is told how each token comes about; None where nobody asked.
        with_cache: Makes the same answer with a cache, to compare one without with; None where nobody asked.
    """

    stream: Stream
    notes: tuple[str, ...]
    tracer: Tracer | None = None
    with_cache: Callable[[], CacheComparison] | None = None

    def __next__(self) -> Token:
        return next(self.stream)

    @property
    def completion(self) -> Completion:
        """The whole answer."""
        return self.stream.completion

    @property
    def ending(self) -> Finish | None:
        """Why the answer ended; None until it has."""
        return self.stream.ending

    @property
    def trace(self) -> Trace | None:
        """How the answer came about, where that was asked for."""
        _ = self.completion
        return self.tracer.trace if self.tracer is not None else None


def generate(
    model: ModelRequest | str,
    *,
    prompt: str,
    options: GenerationRequest = AS_SAVED,
    trace: bool = False,
    layers: bool = False,
    use_cache: bool = True,
) -> Answering:
    """Answer a prompt.

    Args:
        model: What answers; a name alone is that of a model, an adapter, a run or a config.
        prompt: What is asked.
        options: How it is answered.
        trace: Tell how each token comes about.
        layers: And what each layer would have said.
        use_cache: False reads everything again at each step; the answer can then be compared with one with a cache.

    Raises:
        InvalidInputError: The target or the prompt cannot be used.
    """
    session = opened(model)
    voice = session.voice()
    notes = [*session.notes, *to_be_told(session, options)]
    settings = voice.settings(options)
    if (trace or not use_cache) and settings["rules"].num_beams > 1:
        beams, what = settings["rules"].num_beams, "traced" if trace else "compared token by token"
        if options.num_beams is not None:
            raise ConfigError(f"beams cannot be {what}", key="num_beams", remedy="Ask for an answer without beams.")
        notes.append(f"the {beams} beams that generation_config.json asks for cannot be {what}: it is one here")
        settings["rules"] = replace(settings["rules"], num_beams=1)
    if settings["seed"] is None:
        settings["seed"] = torch.Generator().seed() % 2**32  # drawn once, for an answer that may be given twice
    asked = voice.conversation(prompt, options.system)
    ids = voice.prompt_ids(asked)
    notes += voice.about_prompts([asked])
    tracer = Tracer(session.model, voice.tokenizer, layers=layers) if trace else None
    context = DecoderState(session.model, use_cache=use_cache)
    answered = stream(session.model, voice.tokenizer, ids, **settings, context=context, tracer=tracer)

    def with_cache() -> CacheComparison:
        again = stream(session.model, voice.tokenizer, ids, **settings)
        return compare_cache(again.completion, answered.completion, Pieces(voice.tokenizer).of)

    return Answering(answered, tuple(notes), tracer, None if use_cache else with_cache)


def complete(
    model: ModelRequest | str,
    *,
    prompts: Sequence[str],
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    observer: Observer = _ignore,
) -> list[Completion]:
    """Answer several prompts, `batch_size` at a time; the other arguments are those of `generate`.

    Returns:
        One completion a prompt, in the order of the prompts.
    """
    session = opened(model)
    tell(observer, *session.notes, *to_be_told(session, options))
    voice = session.voice()
    asked = [voice.conversation(prompt, options.system) for prompt in prompts]
    ids = [voice.prompt_ids(messages) for messages in asked]
    tell(observer, *voice.about_prompts(asked))
    settings = voice.settings(options)
    return complete_batch(session.model, voice.tokenizer, ids, **settings, batch_size=batch_size)


def compare(
    model: ModelRequest | str,
    *,
    prompts: Sequence[str],
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    observer: Observer = _ignore,
) -> list[AdapterComparison]:
    """Let the base and each adapter answer the same prompts; the other arguments are those of `generate`.

    Returns:
        One comparison a prompt, in the order of the prompts.
    """
    session = opened(model)
    tell(observer, *session.notes)
    return compare_voices(session, prompts, options=options, batch_size=batch_size, observer=observer)


def answer_file(
    model: ModelRequest | str,
    *,
    prompts: Path,
    output: Path,
    prompt_column: str | None = None,
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    observer: Observer = _ignore,
) -> AnsweredFile:
    """Answer a file of prompts into a file of answers.

    Args:
        model: What answers; a name alone is that of a model, an adapter, a run or a config.
        prompts: The file of rows with `prompt`, `messages`, `source` or `translation`.
        prompt_column: What `prompt` is called in it, where it calls it otherwise.
        output: Where each row is written with its `completion`; one that was begun is gone on with.
        options: How they are answered.
        batch_size: How many rows at a time.
        overwrite: Begin anew, whatever `output` holds.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is answered, with the first bad rows.
        RunError: While answering; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    choice = ModelRequest(model) if isinstance(model, str) else model
    questions = read_questions(prompts, lambda: source_language(choice), column=prompt_column)
    asked = AskedRows([question.row.values for question in questions], ADDED)
    check_jsonl(output, reads=[prompts], asked=asked, overwrite=overwrite)
    session = opened(choice)
    tell(observer, *session.notes, *to_be_told(session, options))
    return answer_questions(
        session,
        questions,
        output,
        options=options,
        batch_size=batch_size,
        overwrite=overwrite,
        observer=observer,
    )


def evaluate(
    model: ModelRequest | str,
    *,
    data: DataSource | str | Path | None = None,
    metrics: Sequence[str] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    baseline: bool = False,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    options: GenerationRequest = GREEDY,
    observer: Observer = _ignore,
) -> Evaluation:
    """Measure a model on rows: its loss on their answers or classes, and its own answers by theirs.

    Args:
        model: What is evaluated; a name alone is that of a model, an adapter, a run or a config.
        data: The rows; None takes those that the run of what is evaluated held out.
        metrics: The figures besides loss and perplexity; None gives those of the task, where rows have a right answer.
        output: Where each row is written with its loss and its answer.
        overwrite: Replace what `output` holds.
        baseline: Measure the base too, and the difference.
        batch_size: How many rows at a time.
        limit: At most so many rows, the first ones.
        options: How answers are made.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is measured, with every bad row.
        RunError: While running; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    choice = ModelRequest(model) if isinstance(model, str) else model
    rows_from = data if isinstance(data, DataSource | None) else DataSource(path=str(data))
    if output is not None:
        check_jsonl(output, reads=[] if rows_from is None else [Path(rows_from.path).expanduser()], overwrite=overwrite)
    found = resolve_target(choice.target, choice.adapters, base_model=choice.base_model)
    if baseline and not found.adapters:
        message = "there is no adapter to compare with its base"
        raise AdapterError(message, parameter="baseline", remedy="Name an adapter or a run that has one as `target`.")
    purpose = purpose_of(found, choice, baseline=baseline)
    asked = None if metrics is None else known_metrics(metrics, purpose.task)
    source = read_eval_source(run_of(found), found.base, rows_from, purpose)
    names = chosen_metrics(asked, purpose.task, [question.reference for question in source.questions.values()])
    if purpose.labels:
        rows, subjects = classifying(choice, source, options, limit, observer, baseline=baseline)
    else:
        rows, subjects = generating(choice, source, options, batch_size, limit, observer, baseline=baseline)
    return measure(
        rows,
        subjects[0],
        subjects[1] if baseline else None,
        task=purpose.task.name,
        data=source.called,
        metrics=names,
        labels=purpose.labels,
        batch_size=batch_size,
        output=output,
        observer=observer,
    )


def predict(
    model: ModelRequest | str, *, texts: Sequence[str | tuple[str, str | None]], observer: Observer = _ignore
) -> list[dict[str, float]]:
    """Tell the probability of each class for a few texts.

    Args:
        model: The classifier; a name alone is that of a model, an adapter, a run or a config.
        texts: Each a text, or the two of a pair.
        observer: Is told what was found.

    Returns:
        For each text the probabilities by the names of the classes.

    Raises:
        InvalidInputError: The target is no classifier, or cannot be used.
        NonFiniteError: A score is not a number.
        OutOfMemoryError: The device is too small for the texts together.
    """
    classifier = opened_classifier(model, observer)
    pairs = [(each, None) if isinstance(each, str) else each for each in texts]
    tell(observer, *classifier.about(pairs))
    tokens = classifier.tokens(pairs)
    if any(each.is_cut for each in tokens):
        observer(Note(f"the text is longer than the model's {classifier.context} positions, and was cut to them"))
    longest = max((len(each.ids) for each in tokens), default=0)
    with memory_errors(f"the device ran out of memory with {longest:,} tokens", remedy="Give a shorter text."):
        return classifier.probabilities(tokens)


def predict_file(
    model: ModelRequest | str,
    *,
    texts: Path,
    output: Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    batch_size: int = TEXTS_AT_ONCE,
    overwrite: bool = False,
    observer: Observer = _ignore,
) -> PredictedFile:
    """Classify a file of texts into a file of rows with their classes.

    Args:
        model: The classifier; a name alone is that of a model, an adapter, a run or a config.
        texts: The file of rows with `text`, and `text_pair` where there are two.
        output: Where each row is written with its `prediction` and `probabilities`; one that was begun is gone on with.
            A .csv file has a column for each probability.
        text_column: What `text` is called in the file, where it calls it otherwise than the rows of training did.
        pair_column: What `text_pair` is called in it.
        batch_size: How many rows at a time.
        overwrite: Begin anew, whatever `output` holds.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is classified, with every bad row.
        RunError: While running; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    given = {"text": text_column, "text_pair": pair_column}
    columns = {ours: theirs for ours, theirs in given.items() if theirs is not None}
    rows = read_texts(texts, columns, learned_columns(model))
    check_output(output, rows, texts, overwrite=overwrite)
    classifier = opened_classifier(model, observer)
    tell(observer, *classifier.about((row.text, row.second) for row in rows))
    return predict_rows(classifier, rows, output, batch_size=batch_size, overwrite=overwrite, observer=observer)


def merge(
    target: str | None = None,
    out: str | Path | None = None,
    adapters: Sequence[str] = (),
    *,
    base: BaseChoice | None = None,
    dtype: MergedDtype = "auto",
    base_model: str | None = None,
    verified: bool = True,
    positions: int = LEAST_POSITIONS,
    overwrite: bool = False,
    observer: Observer = _ignore,
) -> MergeReport:
    """Fold adapters into their base, and prove that the result is the model that was trained.

    Args:
        target: An adapter, a run, a checkpoint or a config; or the base beside `adapters`.
        out: The folder to write; None is `merged` beside the adapter.
        adapters: Adapters to sum, `DIR=WEIGHT` or `DIR`.
        base: `dequantized` is the base as 4-bit training saw it, `original` as its files have it; None is the one that
            the adapter was trained on.
        dtype: Of the merged weights; `auto` is that of the base's files.
        base_model: The base to use, whatever the adapters name.
        verified: Compare the merged model with the adapted one before it appears.
        positions: On how many positions at least.
        overwrite: Replace the merged model that `out` holds.
        observer: Is told what happens.

    Raises:
        InvalidInputError: Before anything is written: an adapter does not fit, a folder is taken, a disk is too small.
        RunError: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    found, weights = resolve_weighted(target, adapters, base_model=base_model)
    job = prepare_merge(found, weights, base=base, dtype=dtype)
    folder = Path(out) if out is not None else chosen_folder(found, weighted(adapters[0])[0] if adapters else target)
    for note in job.notes:
        observer(Note(note))
    return merge_and_verify(
        job,
        folder,
        positions=positions if verified else None,
        overwrite=overwrite,
        progress=lambda what, done, total: observer(Progress(what, done, total)),
    )


def inspect_layers(
    target: str | None,
    adapters: Sequence[str] = (),
    *,
    base_model: str | None = None,
    lora: LoraSection | None = None,
) -> LayersReport:
    """Tell the anatomy of a model, what LoRA would train in it, and what adapters changed.

    Args:
        target: A base model, an adapter, a run, a checkpoint or a config.
        adapters: Adapters to look at, `NAME=DIR` or `DIR`.
        base_model: The base, whatever the adapters name.
        lora: What LoRA is to be counted for; None counts an adapter's own, or what an empty config would train.

    Raises:
        InvalidInputError: Something cannot be found or looked into.
    """
    return report_layers(target, adapters, base_model=base_model, lora=lora)


def open_chat(
    model: ModelRequest | str,
    *,
    options: GenerationRequest = AS_SAVED,
) -> ChatSession:
    """Begin a conversation; the arguments are those of `generate`.

    Raises:
        InvalidInputError: The target cannot be used, or the model holds no conversation.
    """
    session = opened(model)
    return ChatSession(session, options)
