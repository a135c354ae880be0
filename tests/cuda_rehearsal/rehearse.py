"""A process of its own that rehearses a group of cases, and writes what it saw of each as JSON.

`python -m tests.cuda_rehearsal.rehearse LIBRARY OUTPUT CASE…`
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Before torch is asked for a device, and before transformers loads weights in threads that know of no mode.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DEACTIVATE_ASYNC_LOAD="1"
)

if __name__ == "__main__":  # before torch is imported, which remembers that there is no CUDA
    ctypes.CDLL(sys.argv[1])

import torch
from torch._subclasses.fake_tensor import FakeTensor

from loraft import api
from loraft.api.answers import OpenModel
from loraft.errors import Interrupted
from loraft.evaluation.open_model import RequestedModel
from loraft.events import ignored
from loraft.inference import engine
from loraft.inference.requests import GenerationRequest
from loraft.kernels import decoding_products, packed_attention, rms_norm
from loraft.models.registry import FAMILIES
from loraft.training import loop, trainer
from tests.cuda_rehearsal.cases import CASES, Case
from tests.cuda_rehearsal.device import rehearsal
from tests.cuda_rehearsal.ledger import Ledger
from tests.cuda_rehearsal.pretend import leave, pretend
from tests.tiny import save_tiny
from tests.training.building import ROWS_OF, judged, tiny_config, write_rows
from tests.training.test_trainer import stop_at
from tests.training.wide import wide_sizes
from tests.zoo import models as zoo

NEW_TOKENS, LAYERS = 2, 2
WIDTHS = {16, 48, 64, 128}
"""Sizes of the tiny models: a square of them is a weight."""


@dataclass
class Seen:
    """What was seen of a case.

    Attributes:
        failed: Why it came to an end before its time; empty where it did not.
        steps: For each training step what it waited for, and what it copied and waited for.
        tokens: For each token of a generated answer, likewise.
        held: The most bytes held in each training step.
        tried: Those held while the longest batch was tried, each time that the run began.
        attention: Which kernels of attention training launched, by how often.
        dense: Tensors of training that hold a number for each two tokens, by operation and place.
        cpu_forms: The forms of our kernels for a CPU that were taken.
    """

    failed: str = ""
    seconds: float = 0.0
    steps: list[dict[str, int]] = field(default_factory=list)
    tokens: list[dict[str, int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    attention: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    cpu_forms: list[str] = field(default_factory=list)


CPU_FORMS: tuple[tuple[Any, str], ...] = (
    (rms_norm, "cpu_norm"),
    (packed_attention._RowProducts, "apply"), (decoding_products, "_of_laid_out"),
)  # fmt: skip


@contextmanager
def watched(ledger: Ledger, seen: Seen) -> Iterator[None]:
    """Steps and tokens leave what they waited for, and a form for the CPU its name."""
    take_step, decode, try_longest = loop.take_step, engine._decode, trainer.try_longest_batch

    def tried(*args: Any, **kwargs: Any) -> None:
        with ledger.since() as found:
            try_longest(*args, **kwargs)
        seen.tried.append(found.peak)

    def step(*args: Any, **kwargs: Any) -> float:
        with ledger.since() as found:
            loss = take_step(*args, **kwargs)
        seen.steps.append(_waited(found))
        seen.held.append(found.peak)
        for operation, count in found.launches.items():
            if any(part in operation for part in ("attn", "attention", "softmax")):
                seen.attention[operation] = seen.attention.get(operation, 0) + count
        lengths = {
            length for batch in args[2].batches for length in (*(batch.row_lengths or ()), batch.input_ids.shape[1])
        }
        for (at, size), count in found.squares.items():
            if size in lengths - WIDTHS:
                seen.dense[at] = seen.dense.get(at, 0) + count
        return loss

    def decoded(*args: Any, **kwargs: Any) -> Iterator[None]:
        steps = decode(*args, **kwargs)
        while True:
            with ledger.since() as found:
                goes_on = next(steps, steps) is not steps
            if not goes_on:
                return
            seen.tokens.append(_waited(found))
            yield

    kept = [(home, name, getattr(home, name)) for home, name in CPU_FORMS]
    loop.take_step, engine._decode = step, decoded  # type: ignore[assignment]
    trainer.try_longest_batch = tried  # type: ignore[assignment]
    for home, name, form in kept:
        setattr(home, name, _noted(form, name, seen))
    try:
        yield
    finally:
        loop.take_step, engine._decode, trainer.try_longest_batch = take_step, decode, try_longest
        for home, name, form in kept:
            setattr(home, name, form)


def _waited(found: Ledger) -> dict[str, int]:
    return dict(found.waits) | {f"(copy) {what}": count for what, count in found.copies.items()}


def _noted(form: Callable[..., Any], name: str, seen: Seen) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, FakeTensor) for each in args):  # experiments with a tiny copy are made on the CPU
            seen.cpu_forms.append(name)
        return form(*args, **kwargs)

    return noting


def rehearse(case: Case, models: Path, folder: Path, seen: Seen) -> None:
    """Train two steps with an evaluation, the thorough ones stopped between, then answer, or tell classes."""
    model = models / case.model_type
    if not model.exists() and case.model_type not in FAMILIES:
        zoo.save(zoo.build(case.model_type, "causal"), model)
    elif not model.exists():
        save_tiny(model, case.model_type, **wide_sizes(case.model_type), num_hidden_layers=LAYERS)
    options = dict(case.options)
    section = {"name_or_path": str(model)}
    section |= {key.removeprefix("model__"): options.pop(key) for key in list(options) if key.startswith("model__")}
    (folder / "model").mkdir()  # so that none is made there
    made = judged if options.get("preference__loss") == "kto" else ROWS_OF[case.task]
    write_rows(folder / "train.jsonl", made())
    saves, together = 1 if case.is_thorough else 2, ["the order is late", "the text"]
    asks = ((0.0, ["the order"]), (1.0, together)) if case.is_thorough else ((0.0, together),)
    with rehearsal() as ledger, watched(ledger, seen):
        config = tiny_config(
            folder, task=case.task, model=section, data__eval=0.2, training__max_steps=2, training__eval_steps=2,
            training__save_steps=saves, training__try_longest_batch=case.tries_longest, **options,
        )  # fmt: skip
        try:
            api.train(config, observer=stop_at(1) if case.is_thorough else ignored)
        except Interrupted:
            api.train(config, resume=True)
        run = str(folder / "run")
        if case.task == "seq_cls":
            api.predict(run, texts=[("the order is late", None), ("the text", None)])
            return
        opened = OpenModel(RequestedModel(run).session())
        for temperature, prompts in asks:
            asked = GenerationRequest(max_new_tokens=NEW_TOKENS, temperature=temperature, seed=0)
            for answer in opened.complete(prompts, options=asked):
                assert len(answer.token_ids) <= NEW_TOKENS


def main() -> None:
    """Rehearse the named cases, one after the other."""
    output, names = Path(sys.argv[2]), sys.argv[3:]
    pretend()
    torch.set_num_threads(1)
    os.fsync = os.fstat  # type: ignore[assignment]  # nothing here need outlive the power
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["LORAFT_CACHE"] = str(Path(place) / "cache")
        for name in names:
            seen, folder, began = Seen(), Path(place) / name, time.process_time()
            folder.mkdir()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rehearse(CASES[name], Path(place) / "models", folder, seen)
            except Exception:
                seen.failed = traceback.format_exc()
            seen.seconds = round(time.process_time() - began, 2)
            found[name] = asdict(seen)
            output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
    leave()
