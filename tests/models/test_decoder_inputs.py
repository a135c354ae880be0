"""What a decoder reads: a start token, then the target one step late."""

from __future__ import annotations

import pytest
import torch

from loraft.errors import ModelError
from loraft.models.modules import decoder_inputs, start_token
from loraft.models.registry import TWO_STACKS
from tests.tiny import tiny_model

TYPES = tuple(TWO_STACKS)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_decoder_reads_its_target_one_step_late(model_type: str) -> None:
    model = tiny_model(model_type)
    labels = torch.tensor([[5, 9, 33, 2]])
    with torch.no_grad():
        by_labels = model(input_ids=labels, labels=labels).logits
        read = model(input_ids=labels, decoder_input_ids=decoder_inputs(model, labels)).logits
    assert torch.equal(by_labels, read), "as the model makes it of its labels itself"


def test_mbart_begins_with_the_end_of_its_target() -> None:
    assert decoder_inputs(tiny_model("mbart"), torch.tensor([[5, 9, 41]])).tolist() == [[41, 5, 9]]


@pytest.mark.parametrize("model_type", ["t5", "bart", "m2m_100"])
def test_a_decoder_without_a_start_token_is_refused(model_type: str) -> None:
    model = tiny_model(model_type)
    model.config.decoder_start_token_id = None
    model.generation_config.decoder_start_token_id = None
    for make in (lambda: decoder_inputs(model, torch.tensor([[5]])), lambda: start_token(model)):
        with pytest.raises(ModelError, match="no start token"):
            make()
