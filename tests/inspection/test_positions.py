"""How positions are told apart: found by experiment on a small copy, of each family and of models made to differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from loraft.inspection import positions
from loraft.inspection.norms import miniature
from loraft.inspection.positions import PositionEncoding, position_encoding
from loraft.models.auto_model import meta_model
from loraft.models.model_structure import family_in
from loraft.models.registry import FAMILIES
from tests.tiny import TELLING, mostly_slow, tiny_sizes

KINDS = {
    **dict.fromkeys(FAMILIES, "rotary"),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "opt", "bart", "mbart", "bert", "distilbert"), "learned"),
    **dict.fromkeys(("roberta", "xlm-roberta"), "learned"),
    "bloom": "alibi",
    **dict.fromkeys(("t5", "mt5", "deberta-v2"), "relative_bias"),
    **dict.fromkeys(("marian", "m2m_100"), "sinusoidal"),
}


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **tiny_sizes(model_type, **overrides))
    return config


def found(config: PreTrainedConfig, values: dict[str, Tensor] | None = None) -> PositionEncoding:
    model = meta_model(config)
    return position_encoding(model, family_in(model).stacks, (values or {}).get)


@pytest.mark.parametrize("model_type", mostly_slow(FAMILIES, *TELLING))
def test_the_kind_is_found_by_experiment(model_type: str) -> None:
    seen = found(tiny_config(model_type))
    assert seen.kind == KINDS[model_type], seen.evidence
    before = seen.kind in ("learned", "sinusoidal")
    assert seen.applied.startswith("once, added before the first layer" if before else "inside attention, ")
    assert len(seen.evidence) >= 2


def test_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama whose config says that it is a GPT-2 is rotary: the copy is asked, and not the config."""
    llama = miniature(tiny_config("llama", num_hidden_layers=2))
    monkeypatch.setattr(positions, "miniature", lambda _: llama)
    model = meta_model(tiny_config("llama"))
    model.config = tiny_config("gpt2")
    seen = position_encoding(model, {"decoder": "model.layers"})
    assert (seen.kind, seen.layers, seen.theta) == ("rotary", {"decoder": (0, 1, 2)}, None)


@pytest.mark.slow
def test_a_mixture_that_calls_its_choice_otherwise_is_looked_into() -> None:
    """Kimi Linear's experts of a token are `num_experts_per_token`; positions act nowhere in it."""
    seen = found(AutoConfig.for_model("kimi_linear"))
    assert (seen.kind, seen.applied) == ("none", "nowhere")


@pytest.mark.parametrize(
    ("model_type", "lie", "kind"),
    [
        ("gpt2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "alibi": True}, "learned"),
        ("bert", {"position_embedding_type": "rotary", "relative_attention_num_buckets": 32}, "learned"),
        ("llama", {"alibi": True, "position_embedding_type": "absolute", "use_rope": False}, "rotary"),
        ("mpt", {"attn_config": {"alibi": False, "rope": True}}, "alibi"),
        ("bloom", {"alibi": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "alibi"),
        ("t5", {"relative_attention": False, "position_embedding_type": "absolute"}, "relative_bias"),
    ],
)
def test_settings_that_the_model_does_not_read_say_nothing(model_type: str, lie: dict[str, Any], kind: str) -> None:
    seen = found(AutoConfig.for_model(model_type, **lie))
    assert seen.kind == kind, seen.evidence
    assert (seen.theta is None) == (kind != "rotary")


@pytest.mark.parametrize("flags", [{}, {"multi_query": False}, {"new_decoder_architecture": True}])
def test_a_setting_that_the_model_reads_decides(flags: dict[str, bool]) -> None:
    sizes = {"num_attention_heads": 8, "num_kv_heads": 8, "hidden_size": 64, "num_hidden_layers": 3}
    assert found(AutoConfig.for_model("falcon", alibi=True, **sizes, **flags)).kind == "alibi"
    assert found(AutoConfig.for_model("falcon", alibi=False, **sizes, **flags)).kind == "rotary"


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 5_000_000.0])
def test_theta_is_measured_in_the_turning_of_queries(theta: float) -> None:
    seen = found(tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": theta}))
    assert seen.theta == theta
    assert f"which makes theta {theta:,g}" in seen.evidence[-1]
    assert seen.layers == {"decoder": (0, 1, 2)}
    assert (seen.turned_share, seen.scaling, seen.limit) == (1.0, None, None)


def test_theta_is_not_claimed_where_the_turning_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that says 77 of a model that turns by 10,000."""
    copy = miniature(tiny_config("llama"))
    monkeypatch.setattr(positions, "miniature", lambda _: copy)
    seen = found(tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    assert (seen.kind, seen.theta) == ("rotary", 77.0)
    assert not any("which makes theta" in sentence for sentence in seen.evidence)


def test_theta_is_measured_where_pairs_are_neighbours() -> None:
    config = AutoConfig.for_model("cohere", rope_parameters={"rope_type": "default", "rope_theta": 4321.0})
    assert "which makes theta 4,321" in found(config).evidence[-1]


@pytest.mark.parametrize(("model_type", "share"), [("gpt_neox", 0.25), ("phi", 0.5), ("glm4", 0.5), ("llama", 1.0)])
def test_the_part_of_a_head_that_turns(model_type: str, share: float) -> None:
    assert found(AutoConfig.for_model(model_type)).turned_share == share


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)  # fmt: skip
def test_scaled_rotary_is_rotary_and_its_scaling_is_told(scaling: dict[str, Any]) -> None:
    seen = found(tiny_config("llama", rope_parameters={"rope_theta": 10_000.0, **scaling}))
    assert seen.kind == "rotary"
    assert seen.scaling is not None
    assert seen.scaling["rope_type"] == scaling["rope_type"]
    assert seen.scaling["factor"] == scaling["factor"]


def test_factors_for_each_pair_of_a_head_are_kept() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128, **factors}
    config = tiny_config("phi3", rope_parameters=rope)
    small = miniature(config).config
    assert small.hidden_size // small.num_attention_heads == 8
    assert found(config).kind == "rotary"


def test_two_thetas_are_told_by_the_kind_of_layer() -> None:
    seen = found(tiny_config("gemma3_text"))
    assert isinstance(seen.theta, dict)
    assert set(seen.theta) == {"sliding_attention", "full_attention"}


def test_layers_without_positions_are_left_out() -> None:
    seen = found(tiny_config("smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0]))
    assert seen.layers == {"decoder": (0, 2)}
    assert "2 of the 4 layers of the decoder" in seen.applied


def test_positions_that_are_off_are_none() -> None:
    seen = found(tiny_config("smollm3", num_hidden_layers=2, no_rope_layers=[0, 0]))
    assert (seen.kind, seen.applied, seen.layers) == ("none", "nowhere", {})


def test_a_table_that_is_empty_in_the_model_itself_is_none() -> None:
    name = "transformer.wpe.weight"
    assert found(tiny_config("gpt2"), {name: torch.zeros(512, 32)}).kind == "none"
    assert found(tiny_config("gpt2"), {name: torch.ones(512, 32)}).kind == "none"
    assert found(tiny_config("gpt2"), {name: torch.randn(512, 32)}).kind == "learned"


@pytest.mark.parametrize(
    ("model_type", "name", "rows", "offset"),
    [
        ("gpt2", "transformer.wpe.weight", 512, 0),
        ("opt", "model.decoder.embed_positions.weight", 514, 2),
        ("bert", "embeddings.position_embeddings.weight", 512, 0),
        ("bart", "model.encoder.embed_positions.weight", 514, 2),
        ("distilbert", "embeddings.position_embeddings.weight", 512, 0),
    ],
)
def test_a_learned_table_is_a_limit_on_length(model_type: str, name: str, rows: int, offset: int) -> None:
    seen = found(tiny_config(model_type))
    table = seen.tables[0]
    assert (table.name, table.shape[0], table.offset) == (name, rows, offset)
    assert seen.limit == 512
    assert "learned" in seen.evidence[-1]


@pytest.mark.parametrize(("padding", "offset"), [(0, 1), (1, 2), (3, 4)])
def test_roberta_counts_positions_from_its_padding_token(padding: int, offset: int) -> None:
    seen = found(tiny_config("roberta", pad_token_id=padding, max_position_embeddings=514))
    assert (seen.tables[0].offset, seen.limit) == (offset, 514 - offset)


def test_t5_has_one_table_in_layer_0_that_all_layers_share() -> None:
    seen = found(tiny_config("t5"))
    assert [(table.stack, table.shape) for table in seen.tables] == [("encoder", (8, 4)), ("decoder", (8, 4))]
    assert all(".block.0." in table.name for table in seen.tables)
    assert seen.layers == {"encoder": (0, 1, 2), "decoder": (0, 1)}
    assert sum("one table that all of them share" in sentence for sentence in seen.evidence) == 2
    assert seen.limit is None


def test_sines_are_told_from_what_is_learned() -> None:
    seen = found(tiny_config("distilbert", sinusoidal_pos_embds=True))
    assert seen.kind == "sinusoidal"
    assert "sines and cosines" in seen.evidence[-1]


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [("gptj", "rotary"), ("falcon", "rotary"), ("mpt", "alibi"), ("longt5", "relative_bias"),
     ("electra", "learned"), ("pegasus", "sinusoidal"), ("qwen3_moe", "rotary"), ("roformer", "rotary"),
     ("mpnet", "relative_bias"), ("deberta", "learned"), ("xlnet", "relative_bias"), ("gpt_neo", "learned"),
     ("xglm", "sinusoidal")],
)  # fmt: skip
def test_families_that_the_table_does_not_have(model_type: str, kind: str) -> None:
    assert model_type not in FAMILIES
    assert found(AutoConfig.for_model(model_type)).kind == kind


@pytest.mark.slow
def test_windows_tables_and_vocabularies_may_be_smaller_than_the_experiment() -> None:
    assert found(tiny_config("mistral", sliding_window=2)).kind == "rotary"
    assert found(AutoConfig.for_model("gpt_neo", window_size=4)).kind == "learned"
    seen = found(tiny_config("gpt2", max_position_embeddings=4, vocab_size=3))
    assert (seen.kind, seen.limit) == ("learned", 4)


def test_what_cannot_be_found_out_is_said() -> None:
    seen = found(AutoConfig.for_model("mamba"))
    assert seen.kind == "unknown"
    assert "no attention" in seen.evidence[0]
    time_first = found(AutoConfig.for_model("fsmt"))
    assert (time_first.kind, time_first.applied) == ("unknown", "not found out")
    assert "not by a turn" in time_first.evidence[-1]


@pytest.mark.parametrize("model_type", mostly_slow(FAMILIES, *TELLING))
def test_the_small_copy_of_a_model_of_any_size_is_small(model_type: str) -> None:
    copy = miniature(AutoConfig.for_model(model_type))
    assert sum(weight.numel() for weight in copy.parameters()) < 3_000_000
    assert copy.dtype == torch.float32


@pytest.mark.parametrize(("turned", "told"), [(False, "values do not differ"), (True, "values differ too")])
def test_values_are_told_from_queries_and_keys(turned: bool, told: str) -> None:
    seen = found(AutoConfig.for_model("roformer", rotary_value=turned))
    assert any(sentence.endswith(told) for sentence in seen.evidence)
