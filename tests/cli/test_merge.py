"""`loraft merge`: what goes where, what is refused, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Calls, Loraft
from tests.merging.merging import own_adapter, save_base
from tests.words import Wording

DEFAULTS: dict[str, object] = {
    "base": None,
    "dtype": "auto",
    "base_model": None,
    "verified": True,
    "overwrite": False,
}


def called(**values: object) -> dict[str, object]:
    return {"target": None, "out": None, "adapters": (), "trust_remote_code": False, **DEFAULTS, **values}


@pytest.fixture
def weak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`some` and `lost`: a run whose adapter bfloat16 keeps in part, and one whose adapter it loses."""
    monkeypatch.chdir(tmp_path)
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    for name, amount in (("some", 0.004), ("lost", 0.001)):
        own_adapter(tmp_path / name / "adapter", base, amount=amount, dtype=torch.bfloat16)


@pytest.mark.usefixtures("place")
def test_the_report_is_on_standard_output_and_the_rest_is_not(loraft: Loraft, calls: Calls) -> None:
    result = loraft("merge", "run")
    assert result.exit_code == 0
    assert calls == [called(target="run")]
    rows = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert {"out run/merged", "base model model", "same likeliest token 100.00 %"} <= rows
    assert any(row.startswith("base original: ") for row in rows)
    assert any(row.startswith("KL(adapted ‖ merged) ") for row in rows)
    assert any(row.startswith("positions 256 ") for row in rows)
    assert "loraft generate run/merged" in result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("weak")
def test_what_it_warns_of_is_a_note_and_in_the_document(loraft: Loraft) -> None:
    result = loraft("merge", "some", "out", "--json")
    document = json.loads(result.stdout)
    assert document["out"] == "out"
    assert 0 < document["kl_adapted_merged"] < document["kl_adapted_base"]
    (warning,) = document["warnings"]
    assert "of the adapter's effect" in warning
    assert f"note: {warning}" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_what_a_library_prints_is_not_on_standard_output(loraft: Loraft, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(model: torch.nn.Module, *_: object) -> torch.nn.Module:
        print("a library prints where it should not")
        return model

    monkeypatch.setattr("transformers.PreTrainedModel.eval", noisy)
    result = loraft("merge", "run", "--json")
    assert json.loads(result.stdout)["out"] == "run/merged"
    assert "a library prints" in result.stderr


@pytest.mark.usefixtures("place")
def test_options_go_on_as_they_are(loraft: Loraft, calls: Calls) -> None:
    options = "--base original --dtype float32 --base-model model --no-verify --overwrite"
    done = loraft("merge", "run", "out", *options.split())
    assert done.exit_code == 0, done.stderr
    expected = {"base": "original", "dtype": "float32", "base_model": "model", "verified": False, "overwrite": True}
    assert calls == [called(target="run", out="out", **expected)]
    assert "verified" not in done.stdout, "nothing is claimed that was not looked at"


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_single_word_beside_adapters_is_where_to_write_unless_it_is_a_base(loraft: Loraft, calls: Calls) -> None:
    for name in ("a", "b"):
        shutil.copytree("run/adapter", name)
    both = ["--adapter", "a=0.7", "--adapter", "b=0.3", "--overwrite", "--no-verify"]
    for words, target, out, code in (
        (["out"], None, "out", 0),
        (["model"], "model", None, 0),
        (["model", "out"], "model", "out", 0),
        (["builtin:any"], "builtin:any", None, 2),
        ([], None, None, 0),
    ):
        calls.clear()
        done = loraft("merge", *words, *both)
        expected = called(target=target, out=out, adapters=["a=0.7", "b=0.3"], verified=False, overwrite=True)
        assert calls == [expected]
        assert done.exit_code == code, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("weak")
def test_a_merge_that_lost_the_adapter_fails(loraft: Loraft) -> None:
    result = loraft("merge", "lost")
    assert result.exit_code == 3
    assert "lost more than it kept" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--dtype", "int8"],
        ["a", "--base", "quantized"],
        ["out", "--adapter", "a=much"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused(loraft: Loraft, calls: Calls, arguments: list[str], wording: Wording) -> None:
    result = loraft("merge", *arguments)
    assert result.exit_code == 2
    wording(result.stderr)
    assert calls == []
