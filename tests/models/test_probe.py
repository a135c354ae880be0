"""What is found of architectures that the table does not have, against what is known of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from loraft.config.choices import ModelGroup
from loraft.errors import ModelError
from loraft.models import probe
from loraft.models.auto_model import meta_model, random_model
from loraft.models.modules import class_logits
from loraft.models.probe import spec_of
from loraft.models.quantize import quantizable_modules
from loraft.models.registry import FAMILIES
from tests.tiny import mostly_slow, tiny_sizes

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 16}  # fmt: skip


def small(model_type: str, **sizes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **{**SMALL, **sizes})


@pytest.mark.parametrize(
    "model_type", mostly_slow(["llama", "gemma2", "cohere2", "granite", "gpt_neox", "opt"], "gemma2")
)
def test_the_probe_finds_what_the_table_says(model_type: str) -> None:
    """A known family, probed as if it were unknown: where its layers are, what acts on its logits, that it packs."""
    known = FAMILIES[model_type]
    found = probe._probed(AutoConfig.for_model(model_type, **tiny_sizes(model_type)), "decoder")
    assert (found.layers_path, found.packs, found.plain) == (known.layers_path, known.packs, False)
    assert found.final_softcap == known.final_softcap
    assert (found.logit_multiplier, found.logit_divisor) == (known.logit_multiplier, known.logit_divisor)
    assert {name.rpartition(".")[2] for name in found.mlp} == {name.rpartition(".")[2] for name in known.mlp}
    assert (found.caching, found.pads_left, found.rewinds) == ("keys", True, True)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("model_type", "sizes", "packs", "rewinds"),
    [
        ("qwen3_moe", EXPERTS, True, True),
        ("gpt_oss", {**EXPERTS, "num_local_experts": 4}, False, True),  # its attention has a sink, which ours has not
        ("mamba", {}, False, False),
        ("bloom", {}, False, True),  # its attention is its own
        (
            "gpt_neo",
            {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
            False,
            True,
        ),  # its mask has an end
    ],
)
def test_what_cannot_lie_end_to_end_and_what_cannot_be_cut_back(
    model_type: str, sizes: dict[str, Any], packs: bool, rewinds: bool
) -> None:
    found = spec_of(small(model_type, **sizes), "decoder")
    assert (found.packs, found.rewinds, found.plain) == (packs, rewinds, False)


def test_a_mixtures_experts_and_routers_are_told_from_its_linear_modules() -> None:
    found = spec_of(small("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=16), "decoder")
    assert found.experts == "mlp.experts"
    assert found.routers == ("mlp.shared_expert_gate",)
    assert all(name.startswith("self_attn.") for name in found.attention)


def test_what_is_around_a_head_and_is_not_known_leaves_the_loss_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SOFTCAPS", ())
    config = AutoConfig.for_model("gemma2", **tiny_sizes("gemma2"))
    found = probe._probed(config, "decoder")
    assert found.plain
    assert found.unknown == ("the loss is computed from the model's own logits",)
    assert not found.packs


def test_where_no_tiny_copy_can_be_made_all_is_done_in_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "tiny_copy", lambda config: None)
    found = probe._probed(small("falcon"), "decoder")
    assert (found.plain, found.packs, found.caching) == (True, False, "none")
    assert "no tiny copy" in found.unknown[0]


@pytest.mark.parametrize(
    ("model_type", "group", "said"),
    [
        ("electra", "decoder", "reads what comes after a token too(.|\\n)*seq_cls"),
        ("pegasus", "decoder", "is an encoder-decoder(.|\\n)*task: seq2seq_lm"),
        ("qwen3_moe", "encoder_decoder", "is a decoder(.|\\n)*task: causal_lm"),
        ("vit", "decoder", "needs a decoder(.|\\n)*another model"),
    ],
)
def test_a_type_for_another_task_is_refused_with_the_one_that_takes_it(
    model_type: str, group: ModelGroup, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        spec_of(AutoConfig.for_model(model_type), group)


@pytest.mark.parametrize("model_type", ["electra", "fnet"])
def test_c50_padding_never_decides(model_type: str) -> None:
    """C50: a family that mixes padding into its rows reads each of them by itself."""
    config = small(model_type, architectures=["XForSequenceClassification"])
    found = spec_of(config, "classifier")
    assert found.alone == (model_type == "fnet")
    model = random_model(config)
    row = torch.randint(5, 120, (1, 9), generator=torch.Generator().manual_seed(0))
    padded, mask = torch.nn.functional.pad(row, (0, 5)), torch.nn.functional.pad(torch.ones_like(row), (0, 5))
    with torch.no_grad():
        alone = model(input_ids=row).logits
        torch.testing.assert_close(class_logits(model, found, padded, mask), alone, atol=1e-6, rtol=1e-5)
        read = model(input_ids=padded, **({} if model_type == "fnet" else {"attention_mask": mask})).logits
    assert torch.allclose(read, alone, atol=1e-6) == (model_type == "electra")


def test_positions_that_no_token_takes_are_found() -> None:
    found = spec_of(small("camembert"), "classifier")
    assert found.spare_positions == FAMILIES["roberta"].spare_positions
    assert replace(found, spare_positions=0) != found


def test_a_family_that_changes_its_weights_is_not_quantized() -> None:
    rwkv = AutoConfig.for_model("rwkv", hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, vocab_size=128)
    with pytest.raises(ModelError, match=r"rescales its weights while it answers(.|\n)*method: lora") as caught:
        quantizable_modules(meta_model(rwkv))
    assert caught.value.problems[0].key == "method"
    assert quantizable_modules(meta_model(small("falcon")))
