"""Runs: what is known of one before its first step, training itself, and what it made measured or merged."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from transformers import GenerationConfig

from loraft.adapters.inject import AdaptedModel
from loraft.adapters.save_adapter import generation_of, stop_ids_of
from loraft.api.check_report import CheckReport, measured_steps, report
from loraft.api.to_hub import push_result
from loraft.baselines.fit_memory import require_memory
from loraft.config.config_file import takes_path
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.distributed.join import joined
from loraft.distributed.ranks import ALONE, Ranks
from loraft.errors import AdapterError, InvalidInputError
from loraft.evaluation.eval_dataset import read_eval_source
from loraft.evaluation.evaluator import Evaluation
from loraft.evaluation.evaluator import evaluate as measure
from loraft.evaluation.open_model import RequestedModel, chosen_metrics, known_metrics, purpose_of
from loraft.evaluation.past_run import run_of
from loraft.evaluation.subjects import opened
from loraft.events import Observer, Progress, ignored, tell
from loraft.inference.batch_generate import BATCH_SIZE
from loraft.inference.completion import stop_texts_of
from loraft.inference.engine import Settings, stream
from loraft.inference.requests import AnyModel, GenerationRequest
from loraft.inference.sampling import SamplingParams
from loraft.io.jsonl import check_jsonl
from loraft.merging.merge_report import LEAST_POSITIONS, MergeReport, merge_and_verify
from loraft.merging.prepare_merge import BaseChoice, MergedDtype, prepare_merge, resolve_weighted, weighted
from loraft.merging.write_weights import chosen_folder
from loraft.models.device import StatedDevice, select_device
from loraft.models.remote_code import as_trusted
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.planning.sample_prompts import sample_ids
from loraft.reporting.report_file import reported
from loraft.rows.places import files_here
from loraft.rows.standard_input import with_input_kept
from loraft.training.loop import noted_signals
from loraft.training.resume import as_begun, begun_batches, require_same_data
from loraft.training.run_dir import (
    RunFolder,
    check_disk,
    choose_run_folder,
    left_unfinished,
    refuse_own_inputs,
    refuse_taken,
    saved_bytes,
)
from loraft.training.trainer import TrainResult, run_plan

GREEDY = GenerationRequest(temperature=0, num_beams=1)
FOLDER_IN_USE = "{} holds a run already: `loraft.train` goes on with it by `resume`, and replaces it by `overwrite`"


@as_trusted
@takes_path
def check(
    config: RunConfig,
    *,
    name: str = "run",
    verbose: bool = False,
    device: Literal["cpu", "cuda"] | None = None,
    gpu_memory: int | None = None,
    gpu_name: str | None = None,
    num_processes: int = 1,
    num_machines: int = 1,
    measure: int = 0,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> CheckReport:
    """Everything that can be known of a run before its first step, without loading a weight unless it is measured.

    Args:
        config: The run, or the path of its file.
        name: What its runs are called where `training.output_dir` is not set; where a file is given, its name.
        verbose: Name each row that stands in the data twice.
        device: Plan for it, instead of for the one that training would take here.
        gpu_memory: Plan for a CUDA GPU of so many bytes, which need not be here.
        gpu_name: Plan for this CUDA GPU, such as `H100 SXM`, with its memory, and predict how long steps take there.
        num_processes: Plan for so many that train together on a machine, one a GPU,
        num_machines: and for so many machines.
        measure: Take so many steps in a process of their own, to tell how long all of them take; keep nothing.
        trust_remote_code: Run the code that the model brings.
        observer: Is told how far measuring is.

    Raises:
        InvalidInputError: With every problem found; `train` refuses the same, and a folder that holds a run.
    """
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=False))
    refuse_taken(folder, resume=folder.holds_run, overwrite=False)
    chosen = device or ("cuda" if gpu_memory is not None or gpu_name is not None else None)
    stated = None if chosen is None else StatedDevice(chosen, gpu_memory, gpu_name)
    ranks = Ranks(0, num_processes * num_machines, 0, num_processes)
    plan = _planned(config, folder, stated, ranks=ranks)
    found = report(plan, folder.path, ranks, verbose=verbose)
    if measure:
        found = replace(found, measured=measured_steps(plan, config, measure, observer))
    return replace(found, notes=(*found.notes, FOLDER_IN_USE.format(folder.path))) if folder.holds_run else found


def _planned(
    config: RunConfig,
    folder: RunFolder,
    stated: StatedDevice | None = None,
    *,
    ranks: Ranks = ALONE,
    batches_a_step: int | None = None,
) -> RunPlan:
    """The plan of a run that memory and disk suffice for."""
    plan = plan_run(config, stated, ranks=ranks, batches_a_step=batches_a_step)
    require_memory(config, plan, stated, ranks)
    kept = plan.frozen_prefix_bytes
    check_disk(folder.path, saved_bytes(plan), checkpoints=plan.checkpoints, frozen_prefix=kept)
    return plan


@as_trusted
@takes_path
def train(
    config: RunConfig,
    *,
    name: str = "run",
    resume: bool = False,
    resume_anyway: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
    command: Sequence[str] = (),
) -> TrainResult:
    """Train as the config says, and save what was trained.

    Args:
        config: The run, or the path of its file.
        name: What its runs are called where `training.output_dir` is not set; where a file is given, its name.
        resume: Go on from the newest checkpoint that verifies.
        resume_anyway: Go on even though config, data or base have changed; implies `resume`.
        overwrite: Replace the run that the folder holds.
        observer: Is told what happens.
        command: How the run was started, for its manifest.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: Before the first step, with every problem found.
        RunError: While running; the checkpoints before it stand.
        Interrupted: By a signal; the state was saved. SIGUSR1 stops nothing: a checkpoint is saved after the next step.
    """
    resume |= resume_anyway
    with (
        joined(config.distributed) as ranks,
        noted_signals(signal.SIGUSR1) as save_requests,  # planning too: before the first step it would end the process
    ):
        observer = observer if ranks.main else ignored
        chosen = ranks.on_main(lambda: _chosen_folder(config, name, observer, resume=resume, overwrite=overwrite))
        folder = RunFolder(chosen, writes=ranks.main)
        known, batches = ranks.on_main(lambda: _known(config, folder, resume=resume))
        plan = _planned_together(known, folder, ranks, batches)
        with _opened(folder, ranks), reported(folder.path, observer, writes=ranks.main) as page:
            done = run_plan(
                *(plan, folder, ranks),
                resume=resume,
                resume_anyway=resume_anyway,
                overwrite=overwrite,
                observer=observer,
                save_requests=save_requests,
                answerer=lambda adapted: answerer_of(adapted, plan),
                command=command,
            )
        return ranks.on_main(lambda: push_result(replace(done, report=page.at), config.training.push_to_hub, observer))


def answerer_of(adapted: AdaptedModel, plan: RunPlan) -> Callable[[str], str]:
    """Answers to `training.sample_prompts` as `generate` would give them: greedy, whatever the defaults are."""
    renderer = plan.data.renderer

    def answer(prompt: str) -> str:
        saved = GenerationConfig(**generation_of(adapted.loaded, plan.config, renderer))  # type: ignore[no-untyped-call]
        settings = Settings(
            rules=SamplingParams().beginning_with(plan.task.first_tokens(adapted.model, renderer)),
            max_new_tokens=plan.config.generation.max_new_tokens,
            stop_ids=stop_ids_of(saved),
            stop_texts=stop_texts_of(saved, GREEDY),
        )
        return stream(adapted.model, renderer.tokenizer, sample_ids(renderer, prompt), **settings).completion.completion

    return answer


@contextmanager
def _opened(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """The folder, which is rank 0's own and seen by all of them."""
    with ExitStack() as opened:
        ranks.on_main(lambda: opened.enter_context(folder.open()))
        ranks.together(folder.require_seen, patiently=True)
        yield


def _free_here(config: RunConfig) -> int:
    """The free memory of the device; 0 where there is none for the config, as planning says."""
    try:
        return select_device(config.model).available_bytes
    except InvalidInputError:
        return 0


def _planned_together(config: RunConfig, folder: RunFolder, ranks: Ranks, batches: int | None) -> RunPlan:
    """The plan of a run as this rank takes part in it, which is the same on all."""
    planning = ranks.with_least_free(_free_here(config))
    plan = ranks.first_on_each_machine(lambda: _planned(config, folder, ranks=planning, batches_a_step=batches))
    ranks.together(lambda: require_same_data(plan, ranks))
    return plan


def _known(config: RunConfig, folder: RunFolder, *, resume: bool) -> tuple[RunConfig, int | None]:
    """The config as its run was begun, and how many batches a step of it reads, where it is gone on with."""
    config = with_input_kept(config)
    return (as_begun(config, folder), begun_batches(folder)) if resume else (config, None)


def _chosen_folder(config: RunConfig, name: str, observer: Observer, *, resume: bool, overwrite: bool) -> Path:
    """The folder of a run that is to be trained, in which that may be done."""
    folder = RunFolder(choose_run_folder(config.training.output_dir, name, resume=resume))
    refuse_taken(folder, resume=resume, overwrite=overwrite)
    if overwrite:
        refuse_own_inputs(folder, config)
    if config.training.output_dir is None and not resume:
        tell(observer, *left_unfinished(folder.path, name))
    return folder.path


@as_trusted
def evaluate(
    model: AnyModel,
    *,
    data: DataSource | str | Path | None = None,
    metrics: Sequence[str] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    baseline: bool = False,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    options: GenerationRequest = GREEDY,
    observer: Observer = ignored,
) -> Evaluation:
    """Measure a model on rows: its loss on their answers or classes, and its own answers by theirs.

    What learned preferences is measured on pairs by the loss that was trained with and by the rewards of both answers,
    and on rows of one answer each as any model is that answers.

    Args:
        model: What is evaluated; a name alone is its target.
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
    requested, output = RequestedModel(model), None if output is None else Path(output)
    rows_from = data if isinstance(data, DataSource | None) else DataSource(path=str(data))
    if output is not None:
        check_jsonl(output, reads=[] if rows_from is None else files_here(rows_from.path), overwrite=overwrite)
    found = requested.found
    if baseline and not found.adapters:
        message = "there is no adapter to compare with its base"
        raise AdapterError(message, parameter="baseline", remedy="Name an adapter or a run that has one as `target`.")
    purpose = purpose_of(requested, baseline=baseline, limit=limit)
    asked = None if metrics is None else known_metrics(metrics, purpose.task)
    source = read_eval_source(run_of(found), found.base, rows_from, purpose)
    references = [question.reference for asked in source.questions for question in asked.values()]
    names = chosen_metrics(asked, source.purpose.task, references)
    rows, subjects = opened(requested, source, options, batch_size, observer)
    return measure(rows, *subjects, metrics=names, batch_size=batch_size, output=output, observer=observer)


@as_trusted
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
    trust_remote_code: bool = False,
    observer: Observer = ignored,
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
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: Before anything is written: an adapter does not fit, a folder is taken, a disk is too small.
        RunError: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    found, weights = resolve_weighted(target, adapters, base_model=base_model)
    job = prepare_merge(found, weights, base=base, dtype=dtype)
    folder = Path(out) if out is not None else chosen_folder(found, weighted(adapters[0])[0] if adapters else target)
    tell(observer, *job.notes)
    return merge_and_verify(
        job,
        folder,
        positions=positions if verified else None,
        overwrite=overwrite,
        progress=lambda what, done, total: observer(Progress(what, done, total)),
    )
