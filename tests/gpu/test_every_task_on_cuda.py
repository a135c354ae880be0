"""Encoder-decoders and classifiers on a GPU: 16 bits and 4 bits, from a config to answers and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.inference.requests import GenerationRequest
from tests.training.wide import wide_config

pytestmark = pytest.mark.gpu

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"model__dtype": "bfloat16"},
    "qlora": {"method": "qlora", "training__optim": "paged_adamw_8bit", "model__dtype": "bfloat16"},
    "full": {"method": "full", "model__dtype": "bfloat16"},
}


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_an_encoder_decoder_trains_evaluates_and_answers(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    run = api.train(wide_config(tmp_path, task="seq2seq_lm", model_type=model_type, data__eval=0.2, **options))
    assert run.eval_loss is not None
    answer = api.generate(
        str(run.run_folder), prompt="the order", options=GenerationRequest(max_new_tokens=8)
    ).completion
    assert len(answer.token_ids) <= 8
    assert api.evaluate(str(run.run_folder)).measured.loss == pytest.approx(run.eval_loss, rel=2e-2)  # other kernels


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_classifier_trains_and_tells_classes(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    run = api.train(wide_config(tmp_path, task="seq_cls", model_type=model_type, data__eval=0.2, **options))
    assert run.eval_loss is not None
    (shares,) = api.predict(str(run.run_folder), texts=[("the order is late", None)])
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
