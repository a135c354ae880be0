"""Every command on every task and method, from a config to a merged model, one after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import loraft
from tests.tiny import save_tiny

WORDS = ("the", "customer", "said", "that", "order", "is", "late", "and", "answer", "in", "text")
TEXTS = [" ".join(WORDS[(start + step) % len(WORDS)] for step in range(2 + start % 4)) for start in range(24)]


@dataclass(frozen=True)
class Case:
    """A task on a model: its rows, and what its section of the config says besides."""

    task: str
    model_type: str
    rows: list[dict[str, Any]]
    data: str = ""

    @property
    def generates(self) -> bool:
        """Whether it answers with text."""
        return self.task != "seq_cls"

    @property
    def compares(self) -> bool:
        """Whether its rows have two answers."""
        return self.task.endswith("preference")

    def without_reference(self, method: str) -> list[str]:
        """What a model that is trained whole is asked, of which nothing is kept as it was."""
        return ["preference.loss=orpo"] if self.compares and method == "full" else []


def reversed_words(text: str) -> str:
    return " ".join(reversed(text.split()))


PAIRS = [{"translation": {"en": text, "xx": reversed_words(text)}} for text in TEXTS]
SOURCES = [{"source": text, "target": reversed_words(text)} for text in TEXTS]
LABELLED = [{"text": text, "label": "late" if "late" in text else "fine"} for text in TEXTS]
CHATS = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": reversed_words(text)}]}
    for text in TEXTS
]
PREFERRED = [{"prompt": f"{text}:", "chosen": f" {reversed_words(text)}", "rejected": f" {text}"} for text in TEXTS]
IN_LANGUAGES = "source_lang: en, target_lang: xx, source_prefix: 'turn: ', "
CASES = [
    Case("causal_lm", "llama", CHATS),
    Case("preference", "llama", PREFERRED),
    Case("seq2seq_lm", "t5", PAIRS, IN_LANGUAGES),
    Case("seq2seq_lm", "bart", PAIRS, IN_LANGUAGES),
    Case("seq2seq_preference", "t5", PREFERRED),
    Case("seq_cls", "bert", LABELLED),
    Case("seq_cls", "llama", LABELLED),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.task}-{case.model_type}")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def place(case: Case, tmp_path: Path) -> Path:
    """A folder with a tiny model, rows and a config."""
    save_tiny(tmp_path / "model", case.model_type)
    for name, rows in (("train", case.rows[:16]), ("eval", case.rows[16:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"preference": CHATS, "seq2seq_preference": SOURCES}.get(case.task, case.rows)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers[16:]))
    (tmp_path / "c.yaml").write_text(
        f"task: {case.task}\n"
        "model: {name_or_path: model, dtype: float32}\n"
        "lora: {r: 4}\n"
        f"data: {{{case.data}train: train.jsonl, eval: eval.jsonl, max_length: 128}}\n"
        "training: {output_dir: run, max_steps: 4, save_steps: 2, learning_rate: 0.01}\n"
    )
    return tmp_path


def read(place: Path, *words: str) -> Any:
    """What a command answers as JSON."""
    done = loraft(*words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_from_a_config_to_a_merged_model(case: Case, method: str, place: Path) -> None:
    chosen = f"method={method}"
    told = read(place, "check", "c.yaml", chosen, *case.without_reference(method))
    assert told["data"]["train_rows"] == 16
    seen = read(place, "preview", "c.yaml", chosen, *case.without_reference(method), "-n", "2")
    assert len(seen["rows"]) == 2
    trained = read(place, "train", "c.yaml", chosen, *case.without_reference(method))
    assert trained["steps"] == 4
    assert read(place, "inspect-layers", "run")["model_type"] == case.model_type
    figures = read(place, "evaluate", "run", "--data", "answers.jsonl", "--output", "figures.jsonl")
    assert figures["rows"] == 8
    answered = _answered(case, place, "run")
    assert [row for row in answered if "text" in row or "prompt" in row]
    if method != "full":
        report = read(place, "merge", "run", "merged")
        assert report["max_abs_logit_difference"] < 1e-3
        assert _answered(case, place, "merged") == answered


def _answered(case: Case, place: Path, target: str) -> list[dict[str, Any]]:
    """What a model says of some rows of a file: answers, or classes (probabilities aside, which merging rounds)."""
    rows = [{"prompt" if case.generates else "text": text} for text in TEXTS[:6]]
    (place / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = ["--input", "ask.jsonl", "--output", f"{target}.answers.jsonl", "--dtype", "float32"]
    limit = ["--max-new-tokens", "8", "--temperature", "0"] if case.generates else []
    done = loraft("generate" if case.generates else "predict", target, *ask, *limit, cwd=place)
    assert done.returncode == 0, done.stderr
    kept = ("text", "prompt", "completion", "prediction")
    answers = [json.loads(line) for line in (place / f"{target}.answers.jsonl").read_text().splitlines()]
    assert len(answers) == len(rows)
    return [{key: row[key] for key in kept if key in row} for row in answers]
