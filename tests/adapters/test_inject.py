"""An adapter put into a base: where, with which start, and in which dtypes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraft.adapters.effect import acting
from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.save_adapter import save_adapter
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError
from loraft.models.load_model import LoadedModel
from loraft.models.quantize import make_trainable, quantization_config
from tests.adapters.setting import FACTS, IDS, Rendering, disturb, logits, run_config, tiny_loaded
from tests.tiny import TINY_MODEL_TYPES, mostly_slow


@pytest.mark.slow_after(7)
@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_every_family_is_adapted_where_its_row_says(tmp_path: Path, model_type: str) -> None:
    loaded = tiny_loaded(tmp_path, model_type)
    before = logits(loaded.model)
    adapted = attach(loaded, run_config(layers="last:2"))
    assert adapted.targets
    assert adapted.targets.layers == (1, 2)
    assert sum(weight.numel() for weight in adapted.trainable.values()) == adapted.targets.trainable_parameters
    assert torch.equal(logits(adapted.model), before), "B starts at zero: nothing is changed yet"


@pytest.mark.parametrize("words", ["attention", "mlp"])
@pytest.mark.parametrize("model_type", mostly_slow(["llama", "gpt2", "gpt_neox", "bloom"], "llama", "gpt2"))
def test_attention_and_mlp_are_apart_and_together_everything(tmp_path: Path, model_type: str, words: str) -> None:
    loaded = tiny_loaded(tmp_path, model_type)
    targets = attach(loaded, run_config(target_modules=words)).targets
    assert targets
    assert 0 < len(targets.modules) < len(attach(tiny_loaded(tmp_path, model_type), run_config()).trainable) // 2


def test_layer_1_is_not_layer_11(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path, num_hidden_layers=12)
    adapted = attach(loaded, run_config(layers=[1], target_modules=["q_proj"]))
    assert list(adapted.trainable) == [
        f"base_model.model.model.layers.1.self_attn.q_proj.lora_{part}.default.weight" for part in "AB"
    ]


@pytest.mark.parametrize(
    ("lora", "names", "layers"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}, None),
        ({"target_modules": ["q_proj"], "layers": "last:1"}, {"q_proj"}, [2]),
        ({"target_modules": ["layers.0.mlp.up_proj", "layers.1.self_attn.q_proj"]},
         {"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"}, None),
    ],
)  # fmt: skip
def test_adapter_config_stays_short_where_it_can(
    tmp_path: Path, lora: dict[str, object], names: set[str], layers: list[int] | None
) -> None:
    adapted = attach(tiny_loaded(tmp_path), run_config(**lora))
    assert isinstance(adapted.model, PeftModel)
    config = adapted.model.peft_config["default"]
    assert config.target_modules == names
    assert config.layers_to_transform == layers


def test_c14_what_is_trained_is_float32_and_what_is_frozen_keeps_its_dtype(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path, dtype=torch.bfloat16, tie_word_embeddings=False)
    frozen = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    adapted = attach(loaded, run_config(use_dora=True, modules_to_save=["lm_head"]))
    dtypes = {name: weight.dtype for name, weight in adapted.model.named_parameters()}
    assert {dtypes[name] for name in adapted.trainable} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if name not in adapted.trainable} == {torch.bfloat16}
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector", "modules_to_save")
    assert all(any(kind in name for name in adapted.trainable) for kind in kinds)
    assert all(any(kind in name for kind in kinds) for name in adapted.trainable)
    assert list(adapted.trainable) == sorted(adapted.trainable)
    base = {
        name.replace(".base_layer", "").replace(".original_module", ""): weight
        for name, weight in adapted.model.get_base_model().named_parameters()
        if not weight.requires_grad
    }
    assert base.keys() == frozen.keys()
    assert all(torch.equal(base[name], frozen[name]) for name in frozen)


def test_c14_under_autocast_outputs_are_bfloat16_and_gradients_float32(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path, dtype=torch.bfloat16), run_config())
    disturb(adapted.trainable)
    with torch.autocast("cpu", torch.bfloat16):
        output = adapted.model(input_ids=IDS).logits
    assert output.dtype == torch.bfloat16
    output.float().logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in adapted.trainable.values())
    assert all(weight.grad.abs().max() > 0 for weight in adapted.trainable.values() if weight.grad is not None)


def test_c14_biases_of_norms_are_trained_over_16_bits(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path, "gpt2", dtype=torch.bfloat16), run_config(bias="all"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted.model(input_ids=IDS, labels=IDS).loss.backward()
    norms = {name: weight for name, weight in adapted.trainable.items() if "ln_" in name}
    assert len(norms) == 7
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in norms.values())
    with acting(adapted.model, None) as base, torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(logits(base)).all()


@pytest.mark.parametrize(
    ("model_type", "saved"), [("gpt2", ["wpe"]), ("gpt2", ["wte", "wpe"]), ("llama", ["embed_tokens"])]
)
def test_c14_embeddings_trained_whole_leave_the_layers_in_16_bits(
    tmp_path: Path, model_type: str, saved: list[str]
) -> None:
    """float32 would flow through every layer, and a norm in 16 bits refuse it."""
    loaded = tiny_loaded(tmp_path, model_type, dtype=torch.bfloat16, tie_word_embeddings=False)
    adapted = attach(loaded, run_config(modules_to_save=saved))
    hidden: list[torch.dtype] = []
    for module in adapted.model.modules():
        if type(module).__name__ in ("GPT2Block", "LlamaDecoderLayer"):
            module.register_forward_pre_hook(lambda _, given: hidden.append(given[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = adapted.model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert set(hidden) == {torch.bfloat16}
    whole = [weight for name, weight in adapted.trainable.items() if "modules_to_save" in name]
    assert len(whole) == len(saved)
    assert all(weight.grad is not None and weight.grad.any() and weight.dtype == torch.float32 for weight in whole)


def test_the_seed_alone_decides_the_start(tmp_path: Path) -> None:
    starts = []
    for draws, dtype in ((0, torch.float32), (100, torch.bfloat16)):
        torch.rand(draws)
        before = torch.get_rng_state()
        starts.append(attach(tiny_loaded(tmp_path, dtype=dtype), run_config(seed=7)).trainable)
        assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    other = attach(tiny_loaded(tmp_path), run_config(seed=8)).trainable
    assert not any(torch.equal(other[name], starts[0][name]) for name in other if "lora_A" in name)


@pytest.mark.parametrize(("init", "spread"), [("default", 1 / 3**0.5 / 32**0.5), ("gaussian", 1 / 4)])
def test_a_starts_as_the_config_says_and_b_at_zero(tmp_path: Path, init: str, spread: float) -> None:
    trainable = attach(tiny_loaded(tmp_path), run_config(init=init, target_modules="attention")).trainable
    drawn = torch.cat([weight.flatten() for name, weight in trainable.items() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(spread, rel=0.1)
    assert all(not weight.any() for name, weight in trainable.items() if "lora_B" in name)


def test_scales_of_patterns_and_rslora(tmp_path: Path) -> None:
    config = run_config(target_modules=["q_proj", "k_proj"], use_rslora=True, rank_pattern={"k_proj": 16})
    adapted = attach(tiny_loaded(tmp_path), config)
    layer = adapted.model.get_base_model().model.layers[0].self_attn
    assert layer.q_proj.scaling["default"] == pytest.approx(8 / 4**0.5)
    assert layer.k_proj.scaling["default"] == pytest.approx(8 / 16**0.5)


def test_no_graph_is_built_below_the_first_adapted_layer(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path), run_config(layers="last:1"))
    states = adapted.model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True]


def test_c14_qlora_leaves_every_weight_of_the_base_as_it_was_loaded(tmp_path: Path) -> None:
    loaded = in_4_bits(tmp_path)
    before = {name: weight.dtype for name, weight in loaded.model.named_parameters()}
    adapted = attach(loaded, run_config("qlora", modules_to_save=["lm_head"], target_modules="attention"))
    disturb(adapted.trainable)
    after = {
        name.replace(".base_layer", "").replace(".original_module", ""): weight.dtype
        for name, weight in adapted.model.get_base_model().named_parameters()
        if not weight.requires_grad
    }
    assert after == before
    assert set(before.values()) == {torch.uint8, torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        loss = adapted.model(input_ids=IDS).logits.float().logsumexp(-1).sum()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in adapted.trainable.values())
    assert adapted.targets
    assert sum(weight.numel() for weight in adapted.trainable.values()) == adapted.targets.trainable_parameters


def test_c14_dora_over_4_bits_gives_16_bits(tmp_path: Path) -> None:
    """Its scales are float32, and so would be every activation after the first adapted layer."""
    adapted = attach(in_4_bits(tmp_path), run_config("qlora", use_dora=True))
    disturb(adapted.trainable)
    given: list[torch.dtype] = []
    for module in adapted.model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(lambda *args: given.append(args[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        adapted.model(input_ids=IDS).logits.float().logsumexp(-1).sum().backward()
    assert set(given) == {torch.bfloat16}
    assert all(weight.grad is not None and weight.grad.any() for weight in adapted.trainable.values())


def test_a_weight_in_4_bits_is_not_trained_whole(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="stored quantized"):
        attach(in_4_bits(tmp_path), run_config("qlora", modules_to_save=["mlp"], target_modules="attention"))


def in_4_bits(folder: Path) -> LoadedModel:
    loaded = tiny_loaded(folder, dtype=torch.bfloat16, tie_word_embeddings=False)
    config = quantization_config(QuantizationSection(), torch.bfloat16, loaded.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    make_trainable(model, torch.bfloat16)
    return replace(loaded, model=model.eval().requires_grad_(False))


def test_full_trains_every_weight_in_float32(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path, dtype=torch.bfloat16, tie_word_embeddings=True), run_config("full"))
    assert isinstance(adapted.model, PreTrainedModel)
    assert adapted.targets is None
    assert {weight.dtype for weight in adapted.model.parameters()} == {torch.float32}
    assert len(adapted.trainable) == len(list(adapted.model.parameters()))
    assert "model.embed_tokens.weight" in adapted.trainable
    assert adapted.model.lm_head.weight is adapted.model.model.embed_tokens.weight


def test_set_training_switches_dropout(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path), run_config(dropout=0.5))
    disturb(adapted.trainable)
    adapted.set_training(True)
    assert not torch.equal(logits(adapted.model), logits(adapted.model))
    adapted.set_training(False)
    assert torch.equal(logits(adapted.model), logits(adapted.model))


def test_c22_tied_embeddings_are_not_trained_on_one_side(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="would break the tie"):
        attach(tiny_loaded(tmp_path, tie_word_embeddings=True), run_config(modules_to_save=["lm_head"]))


def test_a_norm_is_trained_whole_without_its_namesakes(tmp_path: Path) -> None:
    adapted = attach(tiny_loaded(tmp_path), run_config(modules_to_save=["norm"]))
    whole = [name for name in adapted.trainable if "lora_" not in name]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]


def saved_start(tmp_path: Path) -> tuple[AdaptedModel, Path]:
    adapted = attach(tiny_loaded(tmp_path / "base"), run_config(target_modules=["q_proj", "v_proj"]))
    disturb(adapted.trainable)
    save_adapter(adapted, tmp_path / "start", config=run_config(), renderer=Rendering(), facts=FACTS)
    return adapted, tmp_path / "start"


def test_start_from_goes_on_from_an_adapter(tmp_path: Path) -> None:
    first, folder = saved_start(tmp_path)
    config = run_config(target_modules=["q_proj", "v_proj"], start_from=str(folder))
    second = attach(tiny_loaded(tmp_path / "base"), config)
    assert second.trainable.keys() == first.trainable.keys()
    assert all(torch.equal(second.trainable[name], first.trainable[name]) for name in first.trainable)
    assert all(weight.requires_grad for weight in second.trainable.values())


def test_start_from_a_run_is_from_its_adapter(tmp_path: Path) -> None:
    first, folder = saved_start(tmp_path)
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run/adapter")
    chosen = {"target_modules": ["q_proj", "v_proj"]}
    second = attach(tiny_loaded(tmp_path / "base"), run_config(**chosen, start_from=str(tmp_path / "run")))
    assert all(torch.equal(second.trainable[name], first.trainable[name]) for name in first.trainable)
    for start, said in (("base", "is no adapter"), ("absent", "no file or folder")):
        with pytest.raises(AdapterError, match=rf"lora\.start_from: .*{said}"):
            attach(tiny_loaded(tmp_path / "base"), run_config(**chosen, start_from=str(tmp_path / start)))


def test_start_from_another_adapter_is_refused_with_what_differs(tmp_path: Path) -> None:
    _, folder = saved_start(tmp_path)
    config = run_config(
        target_modules=["q_proj", "k_proj"], r=8, alpha=16, use_rslora=True, modules_to_save=["norm"],
        start_from=str(folder),
    )  # fmt: skip
    with pytest.raises(AdapterError) as caught:
        attach(tiny_loaded(tmp_path / "base"), config)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "lora.r",
        "lora.alpha",
        "lora.target_modules",
        "lora.use_rslora",
        "lora.modules_to_save",
        "lora.start_from",
    }


def test_start_from_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _, folder = saved_start(tmp_path)
    loaded = replace(tiny_loaded(tmp_path / "base"), fingerprint="0" * 64)
    with pytest.raises(AdapterError, match="other base weights"):
        attach(loaded, run_config(target_modules=["q_proj", "v_proj"], start_from=str(folder)))
