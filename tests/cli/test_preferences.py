"""Preferences from the command line, on the real small model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.cli.running import loraft
from tests.tavi import DIALECTS, save_small_t5, sentences

PAIRS = [
    {
        "prompt": f"My {what} is late. What now?",
        "chosen": [{"role": "assistant", "content": "I am sorry. We look into it."}],
        "rejected": [{"role": "assistant", "content": "Look at the website."}],
    }
    for what in ("order", "parcel", "refund", "ticket")
]
CONFIG = """\
task: preference
model: {{name_or_path: {model}, dtype: float32}}
data: {{train: pairs.jsonl, eval: pairs.jsonl, max_length: 128}}
training: {{output_dir: run, max_steps: 4, per_device_train_batch_size: 2, learning_rate: 1e-3, logging_steps: 1}}
"""


@pytest.mark.slow
def test_a_real_model_learns_which_answer_is_better_and_gives_it(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "c.yaml").write_text(CONFIG.format(model=smollm2))
    trained = loraft("train", "c.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the reference is read in other batches
    assert steps[-1]["eval_accuracy"] == 1
    assert steps[-1]["eval_loss"] < 0.4
    words = ["evaluate", "run", "--baseline", "--output", "o.jsonl"]
    measured = loraft(*words, "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    told = json.loads(measured.stdout)
    assert told["loss"] == pytest.approx(steps[-1]["eval_loss"], abs=1e-3)
    assert told["metrics"]["margin"] == pytest.approx(steps[-1]["eval_margin"], abs=1e-3)
    assert told["baseline"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert told["baseline"]["differences"]["margin"]["low"] > 0
    assert [json.loads(line)["margin"] > 0 for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [True] * 4
    asked = ["--prompt", PAIRS[0]["prompt"], "--max-new-tokens", "12", "--temperature", "0", "--json"]
    answered = loraft("generate", "run", *asked, cwd=tmp_path)  # type: ignore[arg-type]
    assert answered.returncode == 0, answered.stderr
    assert "sorry" in json.loads(answered.stdout)["completion"]


@pytest.mark.slow
def test_a_real_model_learns_from_single_answers_which_are_good(smollm2: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in PAIRS
        for name in ("chosen", "rejected")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(CONFIG.format(model=smollm2) + "preference: {loss: kto}\n")
    words = (
        "training.per_device_train_batch_size=4",
        "lora.layers=last:6",
        "training.max_steps=3",
        "training.eval_steps=3",
        "data.eval=0.25",
    )
    trained = loraft("train", "c.yaml", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert steps[-1]["eval_desirable_reward"] > 0 > steps[-1]["eval_undesirable_reward"]
    assert steps[-1]["eval_margin"] > 0.5


@pytest.mark.slow
def test_an_encoder_decoder_learns_which_of_two_dialects_to_answer_in(tmp_path: Path) -> None:
    save_small_t5(tmp_path / "t5")
    rows = [
        {"prompt": said.english, "chosen": DIALECTS["northern"](said), "rejected": DIALECTS["tavi"](said)}
        for said in sentences(48, seed=1)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(CONFIG.format(model="t5").replace("preference", "seq2seq_preference"))
    trained = loraft("train", "c.yaml", "data.eval=0.25", "training.max_steps=12", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["eval_accuracy"] == 1
    measured = loraft("evaluate", "run", "--baseline", "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    told = json.loads(measured.stdout)
    assert (told["task"], told["rows"]) == ("seq2seq_preference", 12)
    assert told["metrics"]["margin"] == pytest.approx(steps[-1]["eval_margin"], abs=1e-4)
    assert told["baseline"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    answered = loraft("generate", "run", "--prompt", rows[0]["prompt"], "--json", cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("rows", "words", "named"),
    [
        (PAIRS, ["task=causal_lm"], "task: preference"),
        ([{"prompt": "a", "completion": "b", "label": True}], ["task=causal_lm"], "preference.loss: kto"),
        ([{"prompt": "a", "completion": "b", "label": True}], [], "preference.loss: is dpo"),
        ([{"prompt": "a", "completion": "b", "label": "yes"}], ["preference.loss=kto"], "pairs.jsonl:1"),
        (PAIRS, ["preference.loss=kto"], "the rows are pairs"),
        ([{"prompt": "a", "chosen": "", "rejected": "b"}], [], "pairs.jsonl:1"),
        (PAIRS, ["method=full"], "method: full does not keep"),
    ],
    ids=["another task", "answers as examples", "answers for dpo", "a label", "pairs for kto", "empty", "every weight"],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, rows: list[dict[str, object]], words: list[str], named: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(CONFIG.format(model="builtin:smollm2-135m-instruct"))
    done = loraft("check", "c.yaml", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
