"""What a model is, by its config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.config.sections import ModelSection
from loraft.errors import ModelError
from loraft.models.hf_config import check_dtype, context_of, heads_in, is_classifier
from loraft.models.load_model import load_config
from loraft.models.registry import FAMILIES
from tests.tiny import save_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def section(folder: Path, **options: Any) -> ModelSection:
    return ModelSection(name_or_path=str(folder), **options)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"model_type": "lama"}, r"not one that transformers knows(.|\n)*llama"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "writes no text(.|\n)*task: seq_cls"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "writes no text(.|\n)*ForCausalLM"),
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, r"the weights are quantized \(hqq\)"),
        ({"hidden_size": "many"}, "cannot read it"),
    ],
)
def test_what_is_not_trained_is_refused_with_the_reason(folder: Path, edit: dict[str, Any], said: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(ModelError, match=said):
        load_config(section(folder))


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "{", '{"model_type": null}', "[" * 100_000, "\x00"])
def test_a_config_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError):
        load_config(section(folder))


def test_c40_families_that_overflow_in_float16() -> None:
    with pytest.raises(ModelError, match="not stable in float16"):
        check_dtype(FAMILIES["gemma2"], torch.float16)
    check_dtype(FAMILIES["gemma2"], torch.bfloat16)
    check_dtype(FAMILIES["llama"], torch.float16)


def test_with_classes_it_is_the_config_of_a_classifier(folder: Path) -> None:
    config = load_config(section(folder), "classifier", ("no", "yes"))
    assert is_classifier(config)
    assert (config.num_labels, config.id2label, config.label2id) == (2, {0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    assert not is_classifier(load_config(section(folder)))


def test_positions_that_no_token_has_do_not_count() -> None:
    from transformers import BertConfig, RobertaConfig

    assert context_of(BertConfig(max_position_embeddings=514), FAMILIES["bert"]) == 514
    assert context_of(RobertaConfig(max_position_embeddings=514), FAMILIES["roberta"]) == 512


@pytest.mark.parametrize(("rope_type", "reach"), [("default", 64), ("linear", 256), ("dynamic", 256), ("yarn", 64)])
def test_scaled_positions_reach_as_many_times_farther(rope_type: str, reach: int) -> None:
    """Yarn and its kin have it in the configured number."""
    from transformers import LlamaConfig

    scaled = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0}
    assert context_of(LlamaConfig(max_position_embeddings=64, rope_parameters=scaled), FAMILIES["llama"]) == reach


def test_a_config_that_names_no_layers_has_heads_too() -> None:
    from transformers import BltConfig, LlamaConfig

    assert heads_in(LlamaConfig(num_attention_heads=4)) == 4
    assert heads_in(BltConfig()) == 1
