"""`loraft merge`: what goes where, what is refused, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import fake_api
from tests.cli.conftest import Loraft

DEFAULTS: dict[str, object] = {
    "base": None,
    "dtype": "auto",
    "base_model": None,
    "verified": True,
    "overwrite": False,
}


def called(**values: object) -> dict[str, object]:
    return {"target": None, "out": None, "adapters": [], **DEFAULTS, **values}


def test_the_report_is_on_standard_output_and_the_rest_is_not(loraft: Loraft) -> None:
    result = loraft("merge", "runs/a")
    assert result.exit_code == 0
    assert [called(target="runs/a")] == fake_api.CALLS
    for said in (
        "dequantized: the base as training saw it",
        "KL(adapted ‖ merged)",
        "0.0012",
        "99.61 %",
        "256 of the run's",
    ):
        assert said in result.stdout
    assert "loraft generate runs/a/merged" in result.stdout
    assert "a library prints" not in result.stdout
    assert "note: the adapter was trained on its base in nf4" in result.stderr
    assert "note: the merge lost 12 % of the adapter's effect" in result.stderr


def test_json_is_one_document(loraft: Loraft) -> None:
    document = json.loads(loraft("merge", "runs/a", "out", "--json").stdout)
    assert document["out"] == "out"
    assert document["kl_adapted_merged"] == 0.0012
    assert document["warnings"] == ["the merge lost 12 % of the adapter's effect"]


def test_options_go_on_as_they_are(loraft: Loraft) -> None:
    loraft(
        "merge", "x", "y", "--base", "original", "--dtype", "float32", "--base-model", "z", "--no-verify", "--overwrite"
    )
    expected = {"base": "original", "dtype": "float32", "base_model": "z", "verified": False, "overwrite": True}
    assert [called(target="x", out="y", **expected)] == fake_api.CALLS


def test_without_verification_nothing_is_claimed(loraft: Loraft) -> None:
    result = loraft("merge", "runs/a", "--no-verify")
    assert "verified" not in result.stdout


def test_a_single_word_beside_adapters_is_where_to_write_unless_it_is_a_base(
    loraft: Loraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    both = ["--adapter", "a=0.7", "--adapter", "b=0.3"]
    for words, target, out in (
        (["out"], None, "out"),
        (["org/base"], "org/base", None),
        (["org/base", "out"], "org/base", "out"),
        (["builtin:any"], "builtin:any", None),
        ([], None, None),
    ):
        fake_api.CALLS.clear()
        assert loraft("merge", *words, *both).exit_code == 0
        assert [called(target=target, out=out, adapters=["a=0.7", "b=0.3"])] == fake_api.CALLS


def test_a_merge_that_lost_the_adapter_fails(loraft: Loraft) -> None:
    result = loraft("merge", "lost")
    assert result.exit_code == 3
    assert "error: the merge lost more than it kept" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a TARGET"),
        (["a", "--dtype", "int8"], "--dtype"),
        (["a", "--base", "quantized"], "--base"),
        (["out", "--adapter", "a=much"], "is no weight"),
    ],
)
def test_what_cannot_be_is_refused(loraft: Loraft, arguments: list[str], said: str) -> None:
    result = loraft("merge", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert fake_api.CALLS == []
