"""`loraft inspect-layers`: what a person reads, what a program reads, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraft.cli.app import app
from tests.adapters.setting import disturb, run_config, tiny_loaded
from tests.inspection.test_layers import LLAMA_2_7B, config_alone, saved
from tests.words import Wording


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect-layers", *arguments], prog_name="loraft")


def document(*arguments: str) -> dict[str, Any]:
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def adapter(folder: Path, seed: int = 0, **lora: Any) -> Path:
    """An adapter on the tiny Llama in `base`, moved as training would."""
    from loraft.adapters.inject import attach
    from loraft.adapters.save_adapter import save_adapter
    from loraft.models.safetensors_index import fingerprint
    from tests.adapters.setting import FACTS, Rendering

    config = run_config(model="base", seed=seed, **lora)
    tiny_loaded(Path("base"))
    loaded = tiny_loaded(Path("base"), fingerprint=fingerprint(Path("base")))
    adapted = attach(loaded, config)
    disturb(adapted.trainable, seed + 1)
    save_adapter(adapted, folder, config=config, renderer=Rendering(), facts=FACTS)  # type: ignore[arg-type]
    return folder


@pytest.mark.slow
def test_equal_layers_are_one_group(here: Path) -> None:
    config_alone(here / "llama", LLAMA_2_7B)
    result = inspect("llama", "--lora", "r=8,target_modules=[q_proj,v_proj],layers=last:4")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "layers 0–27: the same 7 modules each" in result.stdout
    assert "layers 28–31: the same 7 modules each" in result.stdout
    assert "MHA: 32 query heads, 32 key/value heads of 128" in result.stdout
    assert "32 × LlamaDecoderLayer at model.layers (on a bare AutoModel: layers)" in result.stdout
    assert "65,536" in result.stdout
    assert "decoder 28–31" in result.stdout
    assert "13 GB in float16 (from config.json)" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 200
    assert inspect("llama", "--every").stdout.count("self_attn.q_proj") == 32


def test_it_is_read_in_a_hundred_columns(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraft.cli import console as render

    saved(here / "bart", "bart")
    monkeypatch.setattr(render, "PIPE_WIDTH", 100)
    monkeypatch.setenv("COLUMNS", "100")
    text = inspect("bart", "--lora", "r=8,target_modules=attention").stdout
    assert max(map(len, text.splitlines())) <= 100
    assert "encoder layers 0–2: the same 6 modules each" in text
    assert "decoder layers 0–1: the same 10 modules each" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("  self_attn.q_proj")]
    assert [row[-1] for row in rows] == ["512", "512"], "no cell is folded"


def test_json_is_one_document_and_nothing_else(here: Path) -> None:
    config_alone(here / "llama", LLAMA_2_7B)
    found = document("llama", "--lora", "r=8,target_modules=[q_proj,v_proj]")
    assert found["lora"]["parameters"] == 4_194_304
    assert found["layers"][31]["modules"][0]["lora_parameters"] == 65_536


def test_a_config_says_what_lora_is_counted_for(here: Path) -> None:
    saved(here / "tiny", "llama")
    text = "model: {name_or_path: any}\nlora: {r: 2, target_modules: attention}\ndata: {train: rows.jsonl}\n"
    Path("run.yaml").write_text(text, encoding="utf-8")
    assert (
        document("tiny", "--lora", "run.yaml")["lora"]
        == document("tiny", "--lora", "r=2,target_modules=attention")["lora"]
    )


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("r=8,foo", "--lora: 'foo' is no key=value"),
        ("rank=8", "--lora lora.rank: is no key of loraft"),
        ("r=0", "--lora lora.r: must be"),
        ("r=x,layers=most", "lora.layers: must be all, first:N"),
        ("layers=last:9", "lora.layers: last:9 asks for 9 layers, and the model has 3 layers"),
        ("target_modules=[q_prj]", "no module is called q_prj"),
        ("nothere.yaml", "nothere.yaml: there is no such file"),
    ],
)
def test_lora_is_checked_by_the_rules_of_a_config(here: Path, lora: str, message: str) -> None:
    saved(here / "tiny", "llama")
    result = inspect("tiny", "--lora", lora)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    refused = json.loads(inspect("tiny", "--lora", lora, "--json").stdout)
    assert refused["exit_code"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nowhere/at/all"],
        ["empty"],
        ["--adapter", "empty"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_refused(here: Path, arguments: list[str], wording: Wording) -> None:
    (here / "empty").mkdir()
    result = inspect(*arguments)
    assert result.exit_code == 2
    wording(result.stderr)


@pytest.mark.slow
def test_c14_an_adapter_is_shown_with_its_base_and_the_dtypes_of_both(here: Path) -> None:
    folder = adapter(here / "runs/a/adapter", target_modules="attention", modules_to_save=["lm_head"])
    for target in ("runs/a", str(folder)):
        result = inspect(target)
        assert result.exit_code == 0, result.stderr
        assert "the adapter default" in result.stdout
        assert "adapter default: by module" in result.stdout
        assert "dead modules        none" in result.stdout
        assert "lm_head.weight" in result.stdout
    parts = [line.split() for line in result.stdout.splitlines() if line.startswith("  attention ")]
    assert parts[-1][-1] == "float32", "C14: the dtype map"
    assert "in F32" in result.stdout
    found = document("runs/a")
    (moved,) = found["adapters"]
    assert len(moved["modules"]) == 12
    assert moved["dtypes"].keys() == {"F32"}
    every = inspect("runs/a", "--every").stdout
    assert every.count("model.layers.") >= 12
    assert "lora_B" not in every


@pytest.mark.slow
def test_two_adapters_are_compared(here: Path) -> None:
    adapter(here / "one")
    adapter(here / "two", seed=5)
    result = inspect("--adapter", "a=one", "--adapter", "b=two")
    assert result.exit_code == 0, result.stderr
    assert "a and b: by layer" in result.stdout
    found = document("one", "--adapter", "b=two")
    assert [each["name"] for each in found["adapters"]] == ["one", "b"]
    assert abs(found["likenesses"][0]["cosine"]) < 0.5
    assert [layer["index"] for layer in found["likenesses"][0]["layers"]] == [0, 1, 2]


def test_an_adapter_without_its_base_is_shown_with_a_note(here: Path) -> None:
    adapter(here / "one")
    (here / "base").rename(here / "elsewhere")
    result = inspect("one")
    assert result.exit_code == 0
    assert "note: The base base is not at hand" in result.stderr
    assert "adapter default" in result.stdout
    mended = inspect("one", "--base-model", "elsewhere")
    assert mended.stderr == "note: The adapter one names base as its base; elsewhere is used.\n"
    assert "of ‖W‖" in mended.stdout


@pytest.mark.slow
def test_a_real_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M: known sizes, from a converted copy."""
    monkeypatch.delenv("LORAFT_CACHE")
    found = document("builtin:smollm2-135m-instruct", "--lora", "r=16")
    assert found["parameters"] == 134_515_008
    assert (found["num_layers"], found["attention"]) == (30, "GQA")
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (9, 3)
    assert found["lora"]["parameters"] == 4_884_480
    assert found["position_encoding"]["kind"] == "rotary"
    assert found["position_encoding"]["theta"] == 100_000
