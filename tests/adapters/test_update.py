"""The update in place against peft's own forward, values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraft.adapters.update import update_in_place
from tests.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_pefts_forward_and_backward(model_type: str, rslora: bool) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rslora, init_lora_weights=False,
        fan_in_fan_out=model_type == "gpt2",
    )  # fmt: skip
    plain = get_peft_model(tiny_model(model_type), config)
    ours = copy.deepcopy(plain)
    update_in_place(ours, "default")
    ids = torch.randint(3, 300, (2, 9))
    results = []
    for model in (plain.train(), ours.train()):
        torch.manual_seed(1)  # for the base's own dropout
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    # float32 sums in another order, through three layers to logits of about 4.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)
    ids = ids[:1]
    assert torch.equal(plain.eval()(input_ids=ids).logits, ours.eval()(input_ids=ids).logits)


def test_dora_and_dropout_keep_their_own_way() -> None:
    dora = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    kept = [type(m.lora_variant["default"]) for m in dora.modules() if hasattr(m, "lora_variant")]
    update_in_place(dora, "default")
    assert [type(m.lora_variant["default"]) for m in dora.modules() if hasattr(m, "lora_variant")] == kept
    dropping = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    ).train()
    update_in_place(dropping, "default")
    ids = torch.randint(3, 300, (1, 9))
    assert not torch.equal(dropping(input_ids=ids).logits, dropping(input_ids=ids).logits)
