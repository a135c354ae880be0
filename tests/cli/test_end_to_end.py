"""The program as a person runs it: real processes, real files, exit codes, and nothing harmed by bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.running import loraft, refused
from tests.tiny import save_tiny
from tests.training.building import rows, write_rows
from tests.words import Wording


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a tiny model, rows and a config."""
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", rows())
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.2, max_length: 256}\n"
        "lora: {r: 4}\n"
        "training: {max_steps: 4, logging_steps: 2, output_dir: run}\n"
        "generation: {max_new_tokens: 8, temperature: 0}\n"
    )
    return tmp_path


def test_check_train_generate(place: Path) -> None:
    checked = loraft("check", "c.yaml", "--json", cwd=place)
    assert json.loads(checked.stdout)["steps"] == 4
    assert not (place / "run").exists()
    trained = loraft("train", "c.yaml", "--json", cwd=place)
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["run_folder"] == "run"
    assert "\x1b" not in trained.stderr
    assert "step 2/4" in trained.stderr
    assert {path.name for path in (place / "run").iterdir()} >= {
        "adapter", "checkpoints", "config.yaml", "manifest.json", "metrics.jsonl",
    }  # fmt: skip
    answer = loraft("generate", "run", "-p", "-", "--json", cwd=place, stdin="the order\n")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told.keys() >= {
        "prompt", "completion", "token_ids", "logprobs", "finish_reason", "prefill_ms", "decode_tokens_per_second",
    }  # fmt: skip
    plain = loraft("generate", "run", "--prompt", "the order", cwd=place)
    assert plain.stdout == told["completion"] + "\n"
    by_config = loraft("generate", "c.yaml", "--prompt", "the order", cwd=place)
    assert by_config.stdout == plain.stdout
    checkpoint = loraft("generate", "run/checkpoints/step-000004", "--prompt", "the order", cwd=place)
    assert checkpoint.stdout == plain.stdout


@pytest.mark.slow
def test_pefts_three_lines_give_what_loraft_gives(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoModelForCausalLM, PeftModel and generate, unchanged, with the files beside the adapter."""
    from peft import PeftModel

    monkeypatch.chdir(place)
    assert loraft("train", "c.yaml", cwd=place).returncode == 0
    told = json.loads(loraft("generate", "run", "-p", "the order", "--json", cwd=place).stdout)
    tokenizer = AutoTokenizer.from_pretrained("run/adapter")
    base_model = AutoModelForCausalLM.from_pretrained("model")
    model = PeftModel.from_pretrained(base_model, "run/adapter")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the order"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    stops = json.loads((place / "run" / "adapter" / "generation_config.json").read_text())["eos_token_id"]
    ends = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    assert ids[:ends] == told["token_ids"]


def test_check_counts_rows_that_are_there_twice_and_names_them_when_asked(place: Path) -> None:
    first = (place / "train.jsonl").read_text().splitlines()[0]
    (place / "twice.jsonl").write_text(f"{first}\n\n{first}\n")
    (place / "seen.jsonl").write_text(first)
    data = ("data.train=twice.jsonl", "data.eval=seen.jsonl")
    counted = json.loads(loraft("check", "c.yaml", *data, "--json", cwd=place).stdout)["data"]
    assert (counted["repeated_rows"], counted["eval_rows_in_train"]) == (1, 1)
    assert "repeated" not in counted
    named = loraft("check", "c.yaml", *data, "--verbose", "--json", cwd=place)
    found = json.loads(named.stdout)["data"]
    assert found["repeated"] == [{"row": "twice.jsonl:3", "same_as": "twice.jsonl:1"}]
    assert found["in_train_and_eval"] == [{"row": "seen.jsonl:1", "same_as": "twice.jsonl:1"}]
    assert "1 training row repeats an earlier one, the first twice.jsonl:3" in named.stderr


@pytest.mark.slow
def test_a_stream_is_checked_and_trained_on(place: Path) -> None:
    streaming = ("data.streaming=true", "data.eval=null", "training.output_dir=streamed")
    told = loraft("check", "c.yaml", *streaming, "--json", cwd=place)
    assert "what is said of the training rows is of the first" in told.stderr
    assert (
        json.loads(told.stdout)["steps"]
        == json.loads(loraft("train", "c.yaml", *streaming, "--json", cwd=place).stdout)["steps"]
    )
    refusal = refused(loraft("check", "c.yaml", "data.streaming=true", "data.eval=0.5", cwd=place))
    assert "a share of the rows cannot be held out" in refusal


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(
    "words",
    [
        ["absent.yaml"],
        ["c.yaml", "data.train=absent.jsonl"],
        ["c.yaml", "training.lr=1"],
        ["c.yaml", "lora.target_modules=[q_prj]"],
        ["c.yaml", "lora.layers=last:99"],
        ["c.yaml", "model.name_or_path=nobody/nothing"],
        ["c.yaml", "model.name_or_path=builtin:smollm"],
        ["c.yaml", "data.max_length=100000"],
    ],
    ids=" ".join,
)
def test_what_check_refuses_train_refuses_too_and_nothing_is_written(
    place: Path, words: list[str], wording: Wording
) -> None:
    told = [refused(loraft(verb, *words, cwd=place)) for verb in ("check", "train")]
    wording(told[0])
    assert told[0] == told[1]
    assert not (place / "run").exists()


def test_a_bad_row_is_named_with_line_and_field(place: Path) -> None:
    with (place / "train.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "ho"}]}\n')
    told = refused(loraft("train", "c.yaml", cwd=place))
    assert "train.jsonl:13" in told
    assert "messages[1].role" in told
    skipped = loraft("train", "c.yaml", "data.on_bad_row=skip", cwd=place)
    assert skipped.returncode == 0
    assert "1 bad row is skipped" in skipped.stderr


def test_a_folder_without_weights_and_a_truncated_file(place: Path) -> None:
    weights = place / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is cut short" in refused(loraft("train", "c.yaml", cwd=place))
    weights.unlink()
    assert "has no weights" in refused(loraft("train", "c.yaml", cwd=place))


def test_c24_a_base_with_missing_tensors(place: Path) -> None:
    """C24: never random numbers in their place."""
    weights = place / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.norm.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "model.norm.weight" in refused(loraft("train", "c.yaml", cwd=place))


def test_a_template_that_cannot_render_the_rows(place: Path) -> None:
    (place / "strict.jinja").write_text("{{ raise_exception('no roles please') }}")
    assert "no roles please" in refused(loraft("check", "c.yaml", "data.chat_template=strict.jinja", cwd=place))


@pytest.mark.slow
def test_a_folder_that_holds_another_run_is_left_as_it_is(place: Path) -> None:
    assert loraft("train", "c.yaml", cwd=place).returncode == 0
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert "holds a run already" in refused(loraft("train", "c.yaml", "seed=1", cwd=place))
    assert {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()} == before
    assert loraft("train", "c.yaml", "seed=1", "--overwrite", cwd=place).returncode == 0


@pytest.mark.slow
def test_runs_without_a_name_are_numbered(place: Path) -> None:
    for _ in range(2):
        assert loraft("train", "c.yaml", "training.output_dir=null", cwd=place).returncode == 0
    assert sorted(os.listdir(place / "runs")) == ["c-1", "c-2"]
    again = loraft("train", "c.yaml", "training.output_dir=null", "--resume", cwd=place)
    assert "the run is finished: its result is saved again from step-000004" in again.stderr
    assert sorted(os.listdir(place / "runs")) == ["c-1", "c-2"]


@pytest.mark.slow
def test_an_adapter_on_another_base_is_refused(place: Path) -> None:
    """C23 from the command line."""
    assert loraft("train", "c.yaml", cwd=place).returncode == 0
    save_tiny(place / "other", seed=1)
    told = refused(loraft("generate", "other", "--adapter", "run", "-p", "hi", cwd=place))
    assert "other base weights" in told


@pytest.mark.slow
def test_qlora_from_the_command_line(place: Path) -> None:
    done = loraft("train", "c.yaml", "method=qlora", "training.optim=paged_adamw_32bit", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "paging" in done.stderr
    told = json.loads((place / "run" / "adapter" / "loraft.json").read_text())
    assert told["quantization"]["type"] == "nf4"
    assert loraft("generate", "run", "-p", "hi", cwd=place).returncode == 0


@pytest.mark.slow
def test_full_fine_tuning_gives_a_model_that_is_a_target(place: Path) -> None:
    done = loraft("train", "c.yaml", "method=full", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["saved"] == "run/model"
    assert loraft("generate", "run", "-p", "hi", cwd=place).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [{"prompt": "the customer", "completion": " said"}, {"text": "the customer said"}])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_c7_what_learned_plain_text_is_asked_with_plain_text(place: Path, rows: dict[str, str], method: str) -> None:
    """The tokenizer has a chat template, and no row had one around it: neither has a prompt."""
    (place / "plain.jsonl").write_text((json.dumps(rows) + "\n") * 8)
    trained = loraft("train", "c.yaml", f"method={method}", "data.train=plain.jsonl", "data.eval=null", cwd=place)
    assert trained.returncode == 0, trained.stderr
    ask = ["--prompt", "the customer", "--max-new-tokens", "2", "--json"]
    asked = loraft("generate", "run", *ask, cwd=place)
    assert json.loads(asked.stdout)["prompt"] == "the customer"
    assert "it learned plain text" in asked.stderr
    if method == "lora":
        assert loraft("merge", "run", "merged", cwd=place).returncode == 0
        assert json.loads(loraft("generate", "merged", *ask, cwd=place).stdout)["prompt"] == "the customer"
