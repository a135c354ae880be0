"""C30: each file that loraft wrote, lost or altered in each way: found and named, and never another result."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraft.api import tuning
from loraft.config.config_file import load_config
from loraft.dataset.token_cache import KEPT as ROWS
from loraft.events import ignored
from loraft.io.paths import CONVERSION
from tests.cli.running import loraft
from tests.faults.conftest import Trial
from tests.faults.harm import HARMS, contents_of, files_of, flip_one_bit, in_turn
from tests.faults.work import ANSWER, result_of, said, work_in
from tests.models.gguf_files import write_tiny_gguf

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("harm", HARMS)]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": "full"},
    "qlora": {"method": "qlora"},
    "seq2seq": {"task": "seq2seq_lm"},
    "classifier": {"task": "seq_cls", "data__labels": ("late", "text", "order")},
}
DECIDES_NOTHING = ("README.md", "merge_report.json")
"""Files for people: without them, or with others, every answer is the same."""


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of run, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = work_in(tmp_path_factory.mktemp(kind), **KINDS[kind])
        return made[kind]

    return of


def copied(work: Path, name: str = "run") -> Path:
    """The whole run once more, to be damaged."""
    shutil.rmtree(work / name, ignore_errors=True)
    return Path(shutil.copytree(work / "whole", work / name))


@pytest.mark.parametrize("kind", KINDS)
def test_c30_the_checkpoint_before_a_damaged_one_is_taken(
    works: Callable[[str], Path], kind: str, harm: str, trial: Trial, torture: bool
) -> None:
    work = works(kind)
    result = contents_of(result_of(work / "whole"))
    names = files_of(work / "whole/checkpoints/step-000006")
    for name in in_turn(names, kind, harm, every=torture, step=4 if kind == "lora" else 20):
        with trial("a damaged file of a checkpoint: named, the one before is taken, the end is bit-identical"):
            run = copied(work)
            HARMS[harm](run / "checkpoints/step-000006" / name)
            done = loraft("train", "c.yaml", "training.output_dir=run", "--resume", cwd=work)
            assert done.returncode == 0, done.stderr
            assert f"checkpoint step-000006 is damaged ({name}" in said(done)
            assert "going on from step-000004" in said(done)
            assert contents_of(result_of(run)) == result


def test_c30_with_no_good_checkpoint_left_nothing_begins(
    works: Callable[[str], Path], harm: str, trial: Trial, torture: bool
) -> None:
    work = works("lora")
    names = files_of(work / "whole/checkpoints/step-000006")
    for name in in_turn(names, harm, every=torture, step=9):
        with trial("the same file damaged in every checkpoint: refused with each by name, the run stays as it is"):
            run = copied(work)
            for checkpoint in run.glob("checkpoints/step-*"):
                HARMS[harm](checkpoint / name)
            before = contents_of(run)
            done = loraft("train", "c.yaml", "training.output_dir=run", "--resume", cwd=work)
            assert done.returncode == 2, done.stderr
            for step in (2, 4, 6):
                assert f"step-{step:06} is damaged ({name}" in said(done)
            assert "no checkpoint is whole to go on from" in said(done)
            assert contents_of(run) == before


READERS = {
    "generate": ("generate", "run", *ANSWER),
    "evaluate": ("evaluate", "run", "--data", "train.jsonl", "--limit", "1"),
    "merge": ("merge", "run", "out/merged"),
    "export": ("export", "run", "out/file.gguf", "--adapter-only"),
    "push": ("push", "run", "somebody/tickets", "--dry-run"),
    "start_from": ("train", "c.yaml", "lora.start_from=run/adapter", "training.output_dir=out/run"),
}
"""The commands that read an adapter, and what they write."""
NOT_TOLD_BY_PUSH = {
    ("loraft.json", "missing"),
    *((name, "one bit flipped") for name in ("loraft.json", "generation_config.json", "tokenizer_config.json")),
}
"""What may be told in a note alone: this adapter names its base by a path, and is refused for that before its notes."""


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_adapter_is_named_by_each_command_that_reads_it(
    works: Callable[[str], Path], reader: str, harm: str, trial: Trial, torture: bool
) -> None:
    work = works("lora")
    names = files_of(work / "whole/adapter")
    for name in in_turn(names, reader, harm, every=torture, step=4):
        if reader == "push" and (name, harm) in NOT_TOLD_BY_PUSH:
            continue
        with trial("a damaged file of an adapter: named by each command that reads it, which refuses it or says so"):
            run = copied(work)
            shutil.rmtree(work / "out", ignore_errors=True)
            (work / "out").mkdir()
            HARMS[harm](run / "adapter" / name)
            done = loraft(*READERS[reader], cwd=work)
            told = said(done)
            assert done.returncode in (0, 2), told
            if name == "loraft.json" and harm == "missing":  # then it is an adapter of another tool
                assert "the base was not compared" in told
            else:
                assert name in told or name in DECIDES_NOTHING, told
            assert done.returncode == 0 or not any((work / "out").rglob("*.[sg]*"))
            if name.endswith((".safetensors", "tokenizer.json", ".jinja")):
                assert done.returncode == 2, "what decides an answer is not read when it is damaged"


def test_a_damaged_merged_model_is_named(works: Callable[[str], Path], harm: str, trial: Trial, torture: bool) -> None:
    work = works("lora")
    if not (work / "whole/merged").is_dir():
        assert loraft("merge", "whole", cwd=work).returncode == 0
    whole = loraft("generate", "whole/merged", *ANSWER, cwd=work)
    for name in in_turn(files_of(work / "whole/merged"), harm, every=torture, step=4):
        with trial("a damaged file of a merged model: named, and refused or told"):
            HARMS[harm](copied(work) / "merged" / name)
            done = loraft("generate", "run/merged", *ANSWER, cwd=work)
            told = said(done)
            assert name in told or done.stdout == whole.stdout
            assert name in told or name in DECIDES_NOTHING
            assert done.returncode in ((0,) if name in DECIDES_NOTHING else (0, 2))


CACHED = "a damaged file in the cache: told, made anew, the same result"


def test_damaged_tokens_are_made_anew(works: Callable[[str], Path], cache: Path, harm: str, trial: Trial) -> None:
    work = works("lora")
    words = ("check", "c.yaml", "training.output_dir=none")
    assert loraft(*words, cwd=work).returncode == 0
    (entry,) = (each for each in (cache / ROWS).iterdir() if each.is_dir())
    before = contents_of(entry)
    for name in files_of(entry):
        with trial(CACHED):
            HARMS[harm](entry / name)
            done = loraft(*words, cwd=work)
            assert done.returncode == 0, done.stderr
            assert f"the rows kept in {entry.name[:12]} are damaged" in said(done)
            assert "they are made anew" in said(done)
            assert contents_of(entry) == before


def test_a_damaged_conversion_is_made_anew(
    works: Callable[[str], Path], cache: Path, tmp_path: Path, harm: str, trial: Trial
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    words = (
        "check",
        "c.yaml",
        f"model.name_or_path={tmp_path}/tiny.gguf",
        "model.tokenizer=model",
        "training.output_dir=none",
    )
    work = works("lora")
    assert loraft(*words, cwd=work).returncode == 0
    (entry,) = (each for each in (cache / CONVERSION).iterdir() if each.is_dir())
    manifest, before = entry.with_name(f"{entry.name}.manifest.json"), contents_of(entry)
    for file in [*(entry / name for name in files_of(entry)), manifest]:
        with trial(CACHED):
            HARMS[harm](file)
            done = loraft(*words, cwd=work)
            assert done.returncode == 0, done.stderr
            assert f"was damaged ({file.name}" in said(done) or (file, harm) == (manifest, "missing")
            assert contents_of(entry) == before


def test_a_damaged_gguf_file_is_refused(
    works: Callable[[str], Path], cache: Path, tmp_path: Path, harm: str, trial: Trial, torture: bool
) -> None:
    """One bit of a weight nobody can find, for the format has no checksum; of what stands around them most are seen."""
    whole = tmp_path / "whole.gguf"
    write_tiny_gguf(whole)
    for number in range(40 if torture and harm == "one bit flipped" else 1):
        with trial("a damaged .gguf file: refused by name, but for one bit, which no checksum tells"):
            file = tmp_path / f"{number}.gguf"
            shutil.copyfile(whole, file)
            if harm == "one bit flipped":
                flip_one_bit(file, random.Random(number).randrange(file.stat().st_size // 20))
            else:
                HARMS[harm](file)
            words = (f"model.name_or_path={file}", "model.tokenizer=model", "training.output_dir=none")
            done = loraft("check", "c.yaml", *words, cwd=works("lora"))
            assert (file.name in said(done) and done.returncode == 2) or harm == "one bit flipped"


LOG = "metrics.jsonl"
ABOUT_A_RUN = ("config.yaml", "manifest.json", LOG)


def logged(run: Path) -> set[tuple[object, ...]]:
    """The losses that a run logged, with their steps."""
    lines = map(json.loads, (run / LOG).read_text().splitlines())
    return {(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines}


READ_OF_A_RUN = {
    "resume": ("train", "c.yaml", "training.output_dir=run", "--resume"),
    "resume by its own config": ("train", "run/config.yaml", "training.output_dir=run", "--resume"),
    "report": ("report", "run", "--quick"),
    "evaluate": ("evaluate", "run"),
}
"""The commands that read what a run says of itself."""


@pytest.mark.parametrize("name", ABOUT_A_RUN)
def test_what_a_run_says_of_itself_is_told_where_it_is_damaged(
    works: Callable[[str], Path], name: str, harm: str, trial: Trial, torture: bool
) -> None:
    work = works("lora")
    for reader in in_turn(sorted(READ_OF_A_RUN), name, harm, every=torture, step=2):
        if name == LOG and (reader == "evaluate" or harm == "one bit flipped"):
            continue  # that does not read it, and of a bit of a number nothing can tell
        with trial("a damaged config, manifest or log of a run: named by what reads it, never taken for what it was"):
            run = copied(work)
            shutil.rmtree(run / "checkpoints/step-000006")
            HARMS[harm](run / name)
            before = contents_of(run)
            done = loraft(*READ_OF_A_RUN[reader], cwd=work)
            assert done.returncode in (0, 2)
            assert name in said(done) or "belongs to no run" in said(done)
            if not reader.startswith("resume"):
                continue
            if name == LOG:
                assert done.returncode == 0, done.stderr
                assert contents_of(run / "adapter") == contents_of(work / "whole/adapter")
                assert logged(run) <= logged(work / "whole")
            else:
                assert done.returncode == 2, "what it was begun with cannot be compared"
                assert contents_of(run) == before


def test_a_damaged_tuning_is_refused(works: Callable[[str], Path], harm: str, trial: Trial) -> None:
    work = works("lora")
    with trial("a damaged list of a tuning's trials: refused by name, nothing changed"):
        shutil.rmtree(work / "tuned", ignore_errors=True)
        made = tuning.Trial({"lora.r": 4}, 8, 1.5, 8, 3.0, "tuned/trial-01")
        begun = tuning._Trials(load_config(work / "c.yaml"), work / "tuned", ignored, "x", 8, [made])
        begun.save()
        (work / "tuned/trial-01").mkdir()
        HARMS[harm](work / "tuned/tune.json")
        before = contents_of(work / "tuned")
        done = loraft("tune", "c.yaml", "--budget", "1m", "training.output_dir=tuned", cwd=work)
        assert done.returncode == 2, done.stderr
        assert "tune.json" in said(done)
        assert contents_of(work / "tuned") == before
