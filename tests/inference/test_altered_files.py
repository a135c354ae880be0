"""No file of what was trained is lost or altered without a word: never another answer, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraft import api
from loraft.errors import AdapterError, InvalidInputError
from loraft.inference.requests import GenerationRequest
from loraft.io.checksums import seal
from tests.training.building import tiny_config


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def one_bit(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(bytes(held))


HARMS: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "emptied": emptied, "one bit": one_bit}
COMMON = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
FILES = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", *COMMON),
    "model": ("config.json", "model.safetensors", *COMMON),
}
OPTIONS = GenerationRequest(max_new_tokens=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter and a run with a model, of one step each."""
    folder = tmp_path_factory.mktemp("runs")
    for what, method in (("adapter", "lora"), ("model", "full")):
        (folder / what).mkdir()
        api.train(tiny_config(folder / what, method=method, training__max_steps=1))
    return folder


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in FILES.items() for name in names])
@pytest.mark.parametrize("harm", HARMS)
def test_every_file_that_decides_an_answer_is_verified(
    runs: Path, tmp_path: Path, what: str, name: str, harm: str
) -> None:
    trained = tmp_path / what
    shutil.copytree(runs / what / "run" / what, trained)
    assert set(json.loads((trained / "loraft.json").read_text())["files"]) == set(FILES[what])
    HARMS[harm](trained / name)
    said, used = "", False
    try:
        said = "\n".join(api.generate(str(trained), prompt="the order", options=OPTIONS).notes)
        used = True
    except InvalidInputError as refused:
        said = str(refused)
    assert name in said or f"{trained}" in said
    assert not used or (name.endswith("config.json") and harm == "one bit"), "only settings are used when altered"


def test_settings_that_were_changed_by_hand_are_used_and_told(runs: Path, tmp_path: Path) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(runs / "adapter/run/adapter", trained)
    defaults = trained / "generation_config.json"
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), "max_new_tokens": 2}))
    answering = api.generate(str(trained), prompt="the order")
    assert len(answering.completion.token_ids) <= 2
    assert any(f"{defaults} was changed since loraft wrote it" in note for note in answering.notes)


def test_a_change_that_is_meant_is_accepted_by_taking_the_file_out_of_the_record(runs: Path, tmp_path: Path) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(runs / "adapter/run/adapter", trained)
    template = trained / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    with pytest.raises(AdapterError, match=r"take chat_template\.jinja out of `files`"):
        api.generate(str(trained), prompt="the order")
    record = json.loads((trained / "loraft.json").read_text())
    del record["files"]["chat_template.jinja"]
    (trained / "loraft.json").write_text(json.dumps(record))
    assert api.generate(str(trained), prompt="the order", options=OPTIONS).completion.token_ids


def test_an_adapter_of_an_earlier_version_is_taken(runs: Path, tmp_path: Path) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(runs / "adapter/run/adapter", trained)
    record = json.loads((trained / "loraft.json").read_text())
    (trained / "loraft.json").write_text(json.dumps({key: value for key, value in record.items() if key != "files"}))
    one_bit(trained / "README.md")
    assert api.generate(str(trained), prompt="the order", options=OPTIONS).completion.token_ids


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_an_adapter_in_numbers_that_are_none_of_its_own_is_refused(
    runs: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(runs / "adapter/run/adapter", trained)
    (trained / "loraft.json").unlink()
    weights = trained / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    save_file({**tensors, first: tensors[first].to(dtype)}, weights)
    with pytest.raises(AdapterError, match=str(dtype).removeprefix("torch.")) as caught:
        api.generate(str(trained), prompt="the order", options=OPTIONS)
    assert first in caught.value.problems[0].message


def test_an_adapter_with_a_tensor_that_has_no_rank_is_refused(runs: Path, tmp_path: Path) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(runs / "adapter/run/adapter", trained)
    weights = trained / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    save_file({**tensors, first: torch.tensor(1.0)}, weights)
    with pytest.raises(AdapterError, match="has no rank"):
        api.generate(str(trained), prompt="the order", options=OPTIONS)


@pytest.mark.slow
def test_a_merged_model_is_verified_too(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    api.merge(str(runs / "adapter/run"), str(out))
    assert api.generate(str(out), prompt="the order", options=OPTIONS).completion.token_ids
    record = json.loads((out / "loraft.json").read_text())
    assert record["files"] == seal(out, ["loraft.json", "README.md", "merge_report.json"])
    one_bit(out / "model.safetensors")
    with pytest.raises(InvalidInputError, match="other contents than were written"):
        api.generate(str(out), prompt="the order", options=OPTIONS)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "float32"), ("bfloat16", "auto")])
def test_what_was_trained_whole_in_float32_runs_in_float32(tmp_path: Path, dtype: str, expected: str) -> None:
    from loraft.adapters.resolve_target import resolve_target

    api.train(tiny_config(tmp_path, method="full", training__max_steps=1, model__dtype=dtype, model_type="gpt2"))
    assert resolve_target(str(tmp_path / "run"), ()).model.section.dtype == expected
