"""Names, layers and patterns, resolved and counted; nothing that matches nothing passes."""

from __future__ import annotations

import pytest

from loraft.adapters.layer_choice import parse_layers
from loraft.adapters.targets import ModuleCount, TargetModules, family_notes, select, targets_in
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError
from loraft.models.registry import FAMILIES, ModelSpec
from tests.tiny import tiny_model

INSIDE = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (8, 4),
    "self_attn.v_proj": (8, 4),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (8, 12),
    "mlp.up_proj": (8, 12),
    "mlp.down_proj": (12, 8),
}
LAYERS = 12
LINEAR = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in INSIDE.items()}
LINEAR["lm_head"] = (8, 100)
MODULES = {
    **{name: a * b for name, (a, b) in LINEAR.items()},
    **{f"model.layers.{i}.input_layernorm": 8 for i in range(LAYERS)},
    **{f"model.layers.{i}.mlp": 288 for i in range(LAYERS)},
    "model.embed_tokens": 800,
    "model.norm": 8,
}


def chosen(**lora: object) -> TargetModules:
    section = LoraSection.model_validate({"r": 4, "alpha": 8, **lora})
    return select(LINEAR, FAMILIES["llama"], section, {"decoder": LAYERS}, modules=MODULES)


def refused(**lora: object) -> str:
    with pytest.raises(AdapterError) as caught:
        chosen(**lora)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("all", tuple(range(12))),
        ("first:2", (0, 1)),
        ("last:2", (10, 11)),
        ("middle:2", (5, 6)),
        ("middle:12", tuple(range(12))),
        ("4-6", (4, 5, 6)),
        ("11-11", (11,)),
        ((5, 0), (0, 5)),
    ],
)
def test_layers_by_words_ranges_and_lists(spec: str | tuple[int, ...], layers: tuple[int, ...]) -> None:
    assert parse_layers(spec, 12) == layers


@pytest.mark.parametrize("spec", [(1, 99), "4-12", "first:13", "last:13", "middle:13", (-1,)])
def test_c19_a_layer_that_does_not_exist_is_told_with_their_number(spec: str | tuple[int, ...]) -> None:
    with pytest.raises(AdapterError, match="the model has 12 layers"):
        parse_layers(spec, 12)


@pytest.mark.parametrize("spec", ["6-4", ()])
def test_layers_that_mean_nothing_are_refused(spec: str | tuple[int, ...]) -> None:
    with pytest.raises(AdapterError, match=r"backwards|empty"):
        parse_layers(spec, 12)


def test_all_linear_is_every_linear_module_inside_the_layers() -> None:
    targets = chosen()
    assert set(targets.modules) == LINEAR.keys() - {"lm_head"}
    assert targets.layers == tuple(range(12))


def test_attention_and_mlp_by_the_table_of_families() -> None:
    assert chosen(target_modules="attention").by_name.keys() == {name for name in INSIDE if "attn" in name}
    assert chosen(target_modules="mlp").by_name.keys() == {name for name in INSIDE if "mlp" in name}


def test_names_match_by_their_last_path_parts() -> None:
    by_one_part = chosen(target_modules=["q_proj"], layers=[1])
    by_two_parts = chosen(target_modules=["self_attn.q_proj"], layers=[1])
    assert by_one_part == by_two_parts
    assert by_one_part.modules == ("model.layers.1.self_attn.q_proj",)


def test_a_full_name_means_one_layer_and_not_another_with_a_longer_number() -> None:
    assert chosen(target_modules=["layers.1.self_attn.q_proj"]).modules == ("model.layers.1.self_attn.q_proj",)


def test_c18_a_name_that_matches_nothing_is_told_with_the_nearest_names() -> None:
    assert "no module is called q_prj" in refused(target_modules=["q_prj", "v_proj"])
    assert "Did you mean q_proj" in refused(target_modules=["q_prj", "v_proj"])
    assert "The model has down_proj, gate_proj" in refused(target_modules=["zzz"])


def test_c18_part_of_a_name_is_not_the_name() -> None:
    assert "no module is called proj" in refused(target_modules=["proj"])


def test_c18_every_wrong_name_is_told_at_once() -> None:
    message = refused(target_modules=["q_prj", "kproj"], rank_pattern={"zzz": 2})
    assert all(name in message for name in ("q_prj", "kproj", "zzz"))


def test_c18_why_a_name_does_not_match() -> None:
    assert "lies outside the transformer layers" in refused(target_modules=["lm_head"])
    assert "is not a linear layer" in refused(target_modules=["input_layernorm"])
    assert "only in layers that lora.layers leaves out" in refused(
        target_modules=["layers.3.mlp.up_proj"], layers="last:2"
    )


def test_parameters_are_r_times_in_plus_out() -> None:
    targets = chosen(target_modules=["q_proj", "k_proj"], layers=[3, 5])
    assert targets.parameters == 2 * (4 * (8 + 8) + 4 * (8 + 4))
    assert targets.by_name == {"self_attn.q_proj": ModuleCount(2, 128), "self_attn.k_proj": ModuleCount(2, 96)}


def test_one_matrix_of_llama_2_at_rank_8() -> None:
    section = LoraSection.model_validate({"r": 8, "target_modules": ["q_proj"]})
    targets = select({"model.layers.0.self_attn.q_proj": (4096, 4096)}, FAMILIES["llama"], section, {"decoder": 1})
    assert targets.parameters == 65_536


def test_dora_adds_a_magnitude_for_each_output() -> None:
    plain, dora = chosen(target_modules=["k_proj"]), chosen(target_modules=["k_proj"], use_dora=True)
    assert dora.parameters - plain.parameters == 12 * 4


def test_patterns_decide_ranks_and_alphas_and_the_first_wins() -> None:
    targets = chosen(
        target_modules=["q_proj", "v_proj"],
        layers="first:2",
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 16, "q_proj": 2},
        alpha_pattern={"v_proj": 1.5},
    )
    ranks = {name.removeprefix("model.layers."): rank for name, rank in targets.ranks.items()}
    assert ranks == {
        "0.self_attn.q_proj": 2,
        "0.self_attn.v_proj": 4,
        "1.self_attn.q_proj": 16,
        "1.self_attn.v_proj": 4,
    }
    assert targets.alphas["model.layers.0.self_attn.v_proj"] == 1.5
    assert targets.alphas["model.layers.0.self_attn.q_proj"] == 8
    assert targets.parameters == (2 + 16) * 16 + 2 * 4 * 12
    assert targets.by_pattern == {r"layers\.1\.self_attn\.q_proj": 1, "q_proj": 1, "v_proj": 2}


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_c19_a_pattern_that_decides_nothing_is_refused(key: str) -> None:
    assert "'up_prj' matches no adapted module" in refused(target_modules=["up_proj"], **{key: {"up_prj": 2}})
    assert "'k_proj' matches no adapted module" in refused(target_modules=["q_proj"], **{key: {"k_proj": 2}})
    assert "is hidden" in refused(target_modules=["q_proj"], **{key: {"q_proj": 2, r".*q_proj": 3}})
    assert "is not a regular expression" in refused(target_modules=["q_proj"], **{key: {"q_(proj": 2}})


def test_modules_to_save_are_found_and_counted() -> None:
    targets = chosen(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    assert targets.saved == ("lm_head", "model.norm")
    assert targets.saved_parameters == 808
    assert targets.trainable_parameters == targets.parameters + 808


def test_c19_modules_to_save_that_match_nothing_are_refused() -> None:
    message = refused(modules_to_save=["lm_heat"])
    assert "no module is called lm_heat" in message
    assert "Did you mean lm_head" in message


def test_a_module_is_not_adapted_and_trained_whole_at_once() -> None:
    assert "adapted by lora.target_modules and trained whole" in refused(modules_to_save=["layers.0.mlp"])


def test_c22_one_side_of_a_tie_is_not_trained() -> None:
    section = LoraSection(modules_to_save=("lm_head",))
    with pytest.raises(AdapterError, match=r"lm_head shares its weight with model\.embed_tokens"):
        select(
            LINEAR,
            FAMILIES["llama"],
            section,
            {"decoder": LAYERS},
            modules=MODULES,
            tied=("model.embed_tokens", "lm_head"),
        )


def test_a_weight_in_4_bits_is_not_trained_whole() -> None:
    section = LoraSection(target_modules=("q_proj",), modules_to_save=("mlp",))
    packed = LINEAR.keys() - {"lm_head"}
    with pytest.raises(AdapterError, match="stored quantized"):
        select(LINEAR, FAMILIES["llama"], section, {"decoder": LAYERS}, modules=MODULES, quantized=packed)


# Models with two stacks, or with experts

T5 = {
    f"{stack}.block.{i}.layer.{at}.{name}": (8, 8)
    for stack, depth, inside in (
        ("encoder", 4, ((0, "SelfAttention.q"), (0, "SelfAttention.o"), (1, "DenseReluDense.wi"))),
        ("decoder", 3, ((0, "SelfAttention.q"), (1, "EncDecAttention.q"), (2, "DenseReluDense.wi"))),
    )
    for i in range(depth)
    for at, name in inside
}
DEPTHS = {"encoder": 4, "decoder": 3}


def of_t5(**lora: object) -> TargetModules:
    section = LoraSection.model_validate({"r": 4, "alpha": 8, **lora})
    return select(T5, FAMILIES["t5"], section, DEPTHS)


def test_layers_are_counted_within_each_stack() -> None:
    targets = of_t5(layers="last:2", target_modules="attention")
    assert targets.layers_by_stack == {"encoder": (2, 3), "decoder": (1, 2)}
    assert targets.layers == (1, 2, 3)
    assert {name.rpartition(".")[2] for name in targets.modules} == {"q", "o"}
    assert len(targets.modules) == 2 * 2 + 2 * 2
    assert of_t5(target_modules=["EncDecAttention.q"]).layers_by_stack == {"decoder": (0, 1, 2)}
    assert set(of_t5().modules) == set(T5)


def test_c19_a_stack_that_has_fewer_layers_is_named() -> None:
    with pytest.raises(AdapterError, match="first:4 asks for 4 layers, and the decoder has 3 layers"):
        of_t5(layers="first:4")


@pytest.mark.parametrize(
    ("layers", "by_stack"),
    [
        ({"encoder": "last:2", "decoder": "all"}, {"encoder": (2, 3), "decoder": (0, 1, 2)}),
        ({"decoder": [0, 2]}, {"decoder": (0, 2)}),
        ({"encoder": "1-2"}, {"encoder": (1, 2)}),
        ("first:1", {"encoder": (0,), "decoder": (0,)}),
    ],
)
def test_each_stack_has_layers_of_its_own(layers: object, by_stack: dict[str, tuple[int, ...]]) -> None:
    targets = of_t5(layers=layers)
    assert targets.layers_by_stack == by_stack
    assert set(targets.modules) == {
        name for name in T5 if int(name.split(".")[2]) in by_stack.get(name.partition(".")[0], ())
    }


def test_the_attention_of_both_stacks_is_theirs_and_what_the_decoder_sees_of_the_encoder() -> None:
    inside = {name.partition(".layer.")[2] for name in of_t5(target_modules="attention").modules}
    assert inside == {"0.SelfAttention.q", "0.SelfAttention.o", "1.EncDecAttention.q"}
    assert {name.rpartition(".")[2] for name in of_t5(target_modules="mlp").modules} == {"wi"}


@pytest.mark.parametrize(
    ("layers", "owner"),
    [({"encoder": "last:5"}, "the encoder has 4 layers"), ({"encoder": "all", "decoder": [3]}, "the decoder has 3")],
)
def test_c19_the_stack_without_the_layer_is_named(layers: object, owner: str) -> None:
    with pytest.raises(AdapterError, match=owner):
        of_t5(layers=layers)


def test_c19_a_stack_that_the_model_does_not_have_is_told_with_those_that_it_has() -> None:
    assert "encoder: llama has no such stack, its layers are the decoder's" in refused(layers={"encoder": "all"})
    with pytest.raises(AdapterError, match="names no layers of either stack"):
        of_t5(layers={})


def test_c18_a_name_that_the_chosen_stack_does_not_have_is_told_with_the_stack_that_has_it() -> None:
    with pytest.raises(AdapterError, match=r"leaves out(.|\n)*It is in layers 0-2 of the decoder"):
        of_t5(target_modules=["EncDecAttention.q"], layers={"encoder": "all"})


def test_what_is_the_attentions_is_not_the_feed_forward_parts() -> None:
    inside = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    linear = {f"bert.encoder.layer.0.{name}": (8, 8) for name in inside}

    def names(group: str) -> list[str]:
        section = LoraSection.model_validate({"target_modules": group})
        return [name[21:] for name in select(linear, FAMILIES["bert"], section, {"encoder": 1}).modules]

    assert names("attention") == list(inside[:2])
    assert names("mlp") == list(inside[2:])


def test_lora_on_a_mixtures_experts_alone_is_refused_with_the_reason() -> None:
    linear = {"model.layers.0.self_attn.q_proj": (8, 8)}
    with pytest.raises(AdapterError, match=r"holds the weights of all experts in one tensor(.|\n)*Write attention"):
        select(linear, FAMILIES["mixtral"], LoraSection.model_validate({"target_modules": "mlp"}), {"decoder": 1})
    for group in ("attention", "all-linear"):
        chosen = LoraSection.model_validate({"r": 2, "target_modules": group})
        assert select(linear, FAMILIES["mixtral"], chosen, {"decoder": 1}).parameters == 32


def test_a_group_of_a_family_that_is_not_known_is_refused_with_its_modules() -> None:
    strange = ModelSpec("strange", "layers", (), ())
    linear = {"layers.0.mix.in_map": (8, 8)}
    with pytest.raises(AdapterError, match=r"its attention is not known(.|\n)*mix\.in_map"):
        select(linear, strange, LoraSection.model_validate({"target_modules": "attention"}), {"decoder": 1})
    assert select(linear, strange, LoraSection(), {"decoder": 1}).modules == ("layers.0.mix.in_map",)


def test_a_rank_beyond_what_a_module_has_is_said() -> None:
    model, family = tiny_model("llama"), FAMILIES["llama"]
    for rank, told in ((16, False), (64, True)):
        targets = targets_in(model, family, LoraSection(r=rank))
        notes = list(family_notes(model, family, targets, quantized=False))
        assert any("k_proj" in note and f"rank of {rank}" in note for note in notes) == told
