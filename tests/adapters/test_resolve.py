"""What TARGET means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.adapters.resolve import Target, resolve_target
from loraft.config.schema import QuantizationSection
from loraft.errors import AdapterError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_adapter(folder: Path, base: str | None = "org/base", record: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "revision": "v1"}))
    (folder / "tokenizer_config.json").write_text("{}")
    if record is not None:
        (folder / "loraft.json").write_text(json.dumps(record))
    return folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["org/model", "gpt2", "builtin:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M"])
def test_a_base_by_its_name(name: str) -> None:
    assert resolve_target(name) == Target(name)


def test_a_base_on_disk(here: Path) -> None:
    make_model(here / "models/mine")
    (here / "model.gguf").touch()
    assert resolve_target("models/mine") == Target("models/mine")
    assert resolve_target("model.gguf") == Target("model.gguf")


@pytest.mark.parametrize("target", ["runs/a", "runs/a/adapter", "runs/a/checkpoints/step-000100", "train.yaml"])
def test_an_adapter_by_its_folder_run_checkpoint_or_config(here: Path, target: str) -> None:
    for place in ("runs/a/adapter", "runs/a/checkpoints/step-000100/adapter"):
        make_adapter(here / place)
    (here / "train.yaml").write_text(
        "model: {name_or_path: x}\ndata: {train: t.jsonl}\ntraining: {output_dir: runs/a}\n"
    )
    found = resolve_target(target)
    inside = Path("runs/a/adapter") if target == "train.yaml" else Path(target)
    assert found.adapter == (inside if inside.name == "adapter" else inside / "adapter")
    assert (found.base, found.revision, found.tokenizer) == ("org/base", "v1", str(found.adapter))
    assert found.quantization is None
    assert found.model_section.name_or_path == "org/base"


def test_a_config_without_output_dir_means_its_newest_run(here: Path) -> None:
    for number in (2, 10):
        make_adapter(here / f"runs/train-{number}/adapter")
    (here / "train.yaml").write_text("model: {name_or_path: x}\ndata: {train: t.jsonl}\n")
    assert resolve_target("train.yaml").adapter == Path("runs/train-10/adapter")


def test_a_run_that_trained_every_weight(here: Path) -> None:
    make_model(here / "runs/full/model")
    assert resolve_target("runs/full") == Target("runs/full/model")


def test_the_base_is_stored_as_it_was_in_training(here: Path) -> None:
    make_adapter(
        here / "a", record={"quantization": {"type": "fp4", "double_quant": False, "compute_dtype": "bfloat16"}}
    )
    expected = QuantizationSection(type="fp4", double_quant=False, compute_dtype="bfloat16")
    assert resolve_target("a").quantization == expected


def test_c43_another_base_than_the_recorded_one_has_to_be_given_and_is_told(here: Path) -> None:
    make_adapter(here / "a")
    assert resolve_target("org/base", "a") == resolve_target("a")
    found = resolve_target("org/other", "a")
    assert (found.base, found.revision) == ("org/other", None)
    assert "org/base" in found.notes[0]


def test_c23_a_base_that_is_gone_is_told_with_what_to_do(here: Path) -> None:
    make_adapter(here / "a", base="/nowhere/base")
    with pytest.raises(AdapterError, match=r"names the base /nowhere/base(.|\n)*--adapter"):
        resolve_target("a")
    make_model(here / "moved")
    assert resolve_target("moved", "a").base == "moved"


@pytest.mark.parametrize(
    ("target", "adapter", "message"),
    [
        (None, None, "there is no model to work on"),
        ("runs/absent", None, "no file or folder runs/absent"),
        ("./absent", None, "no file or folder"),
        ("empty", None, "looked for adapter_config.json"),
        ("unfinished", None, "newest checkpoint is unfinished/checkpoints/step-000002"),
        ("absent.yaml", None, "absent.yaml"),
        ("nameless", None, "does not name a base"),
        ("a", "a", "has an adapter of its own"),
        ("org/base", "org/base", "is no adapter"),
        ("broken", None, "cannot be read"),
    ],
)  # fmt: skip
def test_what_was_looked_for_is_said(here: Path, target: str | None, adapter: str | None, message: str) -> None:
    for name in ("runs", "empty", "unfinished/checkpoints/step-000001", "unfinished/checkpoints/step-000002"):
        (here / name).mkdir(parents=True)
    make_adapter(here / "a")
    make_adapter(here / "nameless", base=None)
    (make_adapter(here / "broken") / "adapter_config.json").write_text("{")
    with pytest.raises(Exception, match=message) as caught:
        resolve_target(target, adapter)
    assert getattr(caught.value, "exit_code", None) == 2
