"""What transformers' Trainer does where loraft is tried: told in the same table, and never a failure of ours."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from tests.faults.cells import exit_code
from tests.faults.conftest import Trial
from tests.faults.fault_points import before_each_change, signalled_at
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(
    "LORAFT_TORTURE" not in os.environ, reason="measures a peer, and cannot fail: scripts/torture has it"
)
NAME = f"transformers.Trainer {transformers.__version__}"
NOTHING: Callable[[], object] = lambda: None  # noqa: E731


class Spoilt(TrainerCallback):
    """Makes a trained weight NaN before the third step: its loss is none then."""

    def on_step_begin(self, args: object, state: object, control: object, **given: object) -> None:
        """Spoil it."""
        model = given["model"]
        if getattr(state, "global_step", None) == 2 and isinstance(model, PeftModel):
            next(weight for weight in model.parameters() if weight.requires_grad).data.fill_(float("nan"))


def train(folder: Path, *callbacks: TrainerCallback) -> None:
    """A run of LoRA over six steps that goes on from the last checkpoint, as the Trainer's own scripts have it."""
    ids = tiny_tokenizer()("the customer said that the order is late and the answer is in the text")["input_ids"]
    rows = [{"input_ids": ids[start : start + 8], "labels": ids[start : start + 8]} for start in range(12)]
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"))
    arguments = TrainingArguments(
        str(folder), max_steps=6, save_steps=2, save_total_limit=2, per_device_train_batch_size=2, learning_rate=0.01,
        logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(adapted, arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    weights = {name: weight.detach() for name, weight in adapted.named_parameters() if weight.requires_grad}
    save_file(weights, folder.with_suffix(".safetensors"))


def started(folder: Path, *callbacks: TrainerCallback, first: Callable[[], object] = NOTHING) -> int:
    """How such a run ended, in a process of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
        if child:
            return exit_code(child)
        code = 1
        try:
            os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            first()
            train(folder, *callbacks)
            code = 0
        except Exception:  # which ends the Trainer's own scripts too
            traceback.print_exc()
        finally:
            os._exit(code)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("trainer") / "whole"
    assert started(folder) == 0, folder.with_suffix(".log").read_text()
    return folder


def note(file: Path) -> None:
    """Make a file a byte longer."""
    with file.open("ab") as opened:
        opened.write(b".")


def end(folder: Path) -> bytes:
    """What a run has trained."""
    return folder.with_suffix(".safetensors").read_bytes()


@pytest.mark.slow
def test_the_trainer_is_killed_inside_a_save(whole: Path, trial: Trial, torture: bool) -> None:
    """As loraft's own runs are: before a random change of a file, of which its pickles are one each."""
    counted = whole.with_name("counted")
    changes = counted.with_suffix(".changes")
    assert started(counted, first=lambda: before_each_change(counted, lambda *_: note(changes))) == 0
    draw = random.Random(0)
    for number in range(40 if torture else 8):
        folder = whole.with_name(f"killed-{number}")
        at = draw.randint(1, changes.stat().st_size)
        assert started(folder, first=signalled_at(folder, at)) == -signal.SIGKILL
        with suppress(AssertionError), trial(f"{NAME}: kill -9 inside a save: resumed, bit-identical"):
            assert started(folder) == 0
            assert end(folder) == end(whole)


@pytest.mark.slow
def test_the_trainer_goes_on_without_a_file(whole: Path, trial: Trial) -> None:
    """One that goes on from a whole checkpoint ends bit-identical."""
    folder = shutil.copytree(whole, whole.with_name("goes-on"))
    shutil.rmtree(folder / "checkpoint-6")
    assert started(folder) == 0
    assert end(folder) == end(whole)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"):
        folder = shutil.copytree(whole, whole.with_name(f"without-{name}"))
        shutil.rmtree(folder / "checkpoint-6")
        (folder / "checkpoint-4" / name).unlink()
        with suppress(AssertionError), trial(f"{NAME}: a file of a checkpoint is missing: said, or bit-identical"):
            assert started(folder) != 0 or end(folder) == end(whole)


@pytest.mark.slow
def test_the_trainer_meets_a_loss_that_is_none(whole: Path, trial: Trial) -> None:
    folder = whole.with_name("none")
    with suppress(AssertionError), trial(f"{NAME}: a loss is NaN: stopped, or nothing that is NaN is saved"):
        code = started(folder, Spoilt())
        assert code or all(weight.isfinite().all() for weight in load_file(folder.with_suffix(".safetensors")).values())
