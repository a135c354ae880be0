"""Every task on a GPU, in 16 bits, in 4 and whole: from a config to answers or classes, and to a merged model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.runs import METHODS, said, written

pytestmark = pytest.mark.gpu(or_cpu=True)

TASKS = [
    ("causal_lm", "llama"),
    ("seq2seq_lm", "t5"),
    ("seq2seq_lm", "bart"),
    ("seq_cls", "bert"),
    ("seq_cls", "llama"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("task", "model_type"), TASKS)
def test_a_task_goes_from_its_config_to_a_merged_model(tmp_path: Path, task: str, model_type: str, method: str) -> None:
    place = written(tmp_path, task=task, model_type=model_type, **METHODS[method])
    assert said(place, "check", "c.yaml")["memory"]
    logged = said(place, "train", "c.yaml")
    measured = said(place, "evaluate", "run")["loss"]
    assert measured == pytest.approx(logged["eval_loss"], rel=2e-2)  # by other kernels than in training
    assert answered(place, "run", task)
    if method == "full":
        return
    report = said(place, "merge", "run", "merged", "--dtype", "float32")
    assert report["base"] == ("dequantized" if method == "qlora" else "original")
    assert answered(place, "merged", task)


def answered(place: Path, target: str, task: str) -> bool:
    """Whether a target gives an answer of its length, or the probabilities of all classes."""
    if task == "seq_cls":
        told = said(place, "predict", target, "--text", "the order is late")
        return abs(sum(told["probabilities"].values()) - 1) < 1e-3
    told = said(place, "generate", target, "--prompt", "the order", "--max-new-tokens", "8")
    return len(told["token_ids"]) <= 8
