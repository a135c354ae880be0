"""Rows that are trained by themselves, against peft's own layer: values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraft.kernels.trained_rows import TrainedRows, patch_trained_rows
from tests.tiny import tiny_model

IDS = torch.tensor([[3, 9, 200, 3, 17]])


@pytest.mark.parametrize("model_type", ["llama", "gemma", "bart", "opt"])
def test_values_and_gradients_are_peft_s(model_type: str) -> None:
    """An untied head, scaled embeddings, two stacks with scaled tables, a tied head."""
    model = tiny_model(model_type)
    rows: list[int] | dict[str, list[int]] = [3, 200]
    if model_type == "llama":
        rows = {"embed_tokens": [3, 200], "lm_head": [3, 200]}
    theirs = get_peft_model(model, LoraConfig(target_modules="all-linear", trainable_token_indices=rows))
    for name, parameter in theirs.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    ours = copy.deepcopy(theirs)
    patch_trained_rows(ours)
    assert any(type(module) is TrainedRows for module in ours.modules())
    given = {"input_ids": IDS, "labels": IDS}
    outputs = [each(**given) for each in (theirs, ours)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.loss.backward()
    for (name, one), (_, other) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        if "trainable_tokens_delta" in name:
            assert one.grad is not None
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
