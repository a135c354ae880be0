"""Adapters that plain peft makes, of every kind that it has: loaded, switched off, merged and looked at.

Each has peft's logits; what cannot be is refused by its name.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import Lfm2Config, Lfm2ForCausalLM

from loraft import api
from loraft.adapters.effect import acting, merged
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import ModelSection
from loraft.errors import AdapterError
from loraft.inspection.layers_report import inspect_layers
from loraft.kernels.decoding_products import patch_decode_linears
from loraft.models.device import DeviceConfig
from loraft.models.load_model import load_model
from tests.adapters.setting import disturb
from tests.merging.merging import KINDS, Kind, load_base, outputs, peft_adapter, prepared, save_base, written
from tests.tiny import SIZES, tiny_tokenizer

BASES = KINDS | {"qwen2": Kind("qwen2"), "mixtral": Kind("mixtral", targets=["q_proj"])}
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WEIGHTS = ["self_attn.q_proj.weight", "embed_tokens.weight"]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "biases of B": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "all biases": ("gpt2", {"bias": "all", "fan_in_fan_out": True}),
    "experts": ("mixtral", {"target_parameters": FUSED}),
    "tokens": ("llama", {"trainable_token_indices": [3, 9, 200]}),
    "adapted biases": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    "experts alone": ("mixtral", {"target_modules": [], "target_parameters": FUSED[:1], "use_rslora": True,
                                  "rank_pattern": {"experts.gate_up_proj": 8}, "alpha_pattern": {"gate_up_proj": 3}}),
    "router": ("mixtral", {"target_parameters": ["mlp.gate.weight"]}),
    "weights as parameters": ("llama", {"target_modules": [], "target_parameters": WEIGHTS}),
    "tied tokens": ("llama tied", {"trainable_token_indices": [3, 9, 200]}),
    "tokens of two": ("llama", {"trainable_token_indices": {"embed_tokens": [3, 9], "lm_head": [7]}}),
    "all but some": ("llama", {"exclude_modules": ["k_proj", "down_proj"]}),
    "expressions": ("llama", {"target_modules": r".*\.(q|k)_proj", "exclude_modules": r".*layers\.1\..*"}),
    "layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "tied updates": ("llama tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "minor components": ("llama", {"init_lora_weights": "mica"}),
    "rank of both": ("llama", {"rank_pattern": {r"layers\.1\..*": 2, "q_proj": 8}, "alpha_pattern": {"v_proj": 1.5}}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in BASES.items():
        monkeypatch.setitem(KINDS, name, kind)


def base_of(folder: Path, kind: str) -> Path:
    base = save_base(folder, kind)
    if kind == "mixtral":  # as it is in memory: all experts in one tensor
        model = load_base(base, kind)
        for file in base.glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(base, save_original_format=False)
    return base


def loaded(base: Path, **adapters: Path) -> AdaptedModel:
    placement = DeviceConfig("cpu", torch.float32, "a test's CPU", 0, 0, ())
    return load_adapters(load_model(ModelSection(name_or_path=str(base)), placement, group=None), adapters)


def equal(one: torch.Tensor, other: torch.Tensor) -> None:
    assert torch.equal(one, other)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """The same to rounding, which goes with the largest logit: a small one is a difference of sums as large as that."""
    torch.testing.assert_close(one, other, atol=4e-6 * other.abs().max().item(), rtol=0)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_peft_made_has_peft_s_logits_loaded_and_merged(tmp_path: Path, shape: str) -> None:
    """C48 too, of biases: the base without the adapter has its own."""
    kind, lora = SHAPES[shape]
    base = base_of(tmp_path / "base", kind)
    theirs = outputs(peft_adapter(tmp_path / "adapter", base, kind, **lora))
    plain = outputs(load_base(base, kind))
    adapted = loaded(base, mine=tmp_path / "adapter")
    # The logits of tokens with rows of their own are a product of their own, which is summed in another order.
    same = close if "tokens" in shape else equal
    same(outputs(adapted.model), theirs)
    assert not torch.allclose(theirs, plain, atol=1e-1), "the adapter has an effect"
    with acting(adapted.model, None) as model:
        assert torch.equal(outputs(model), plain)
    same(outputs(adapted.model), theirs)
    close(outputs(merged(adapted)), theirs)
    close(outputs(load_base(written(prepared(str(tmp_path / "adapter")), tmp_path / "merged"), kind)), theirs)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("shape", ["experts", "all biases", "tokens of two", "biases of B"])
def test_inspect_layers_names_all_that_such_an_adapter_has(tmp_path: Path, shape: str) -> None:
    kind, lora = SHAPES[shape]
    base = base_of(tmp_path / "base", kind)
    model = peft_adapter(tmp_path / "adapter", base, kind, **lora)
    (updates,) = inspect_layers(str(tmp_path / "adapter")).adapters
    assert updates.unread == ()
    names = {move.path for move in updates.modules}
    if shape == "experts":
        assert {"model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"} <= names
        assert updates.ranks == (4,)
        wrapper = model.get_base_model().model.layers[1].mlp.experts
        norm = float(wrapper.get_delta_weight("default").detach().norm())
        told = next(move for move in updates.modules if move.path.endswith(f"1.mlp.experts.{wrapper.parameter_name}"))
        assert told.norm == pytest.approx(norm, rel=1e-5)
        assert told.relative == pytest.approx(norm / float(wrapper.get_param().detach().norm()), rel=1e-5)
    if shape == "tokens of two":
        assert [each.name for each in updates.saved] == [
            "lm_head.weight (1 rows)", "model.embed_tokens.weight (2 rows)",
        ]  # fmt: skip
    if shape == "all biases":
        assert {each.name for each in updates.saved} >= {"transformer.ln_f.bias", "transformer.h.0.attn.c_attn.bias"}
    assert all(each.norm for each in updates.saved)


@pytest.mark.slow
def test_biases_of_one_adapter_do_not_answer_for_another(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "qwen2")
    biased = outputs(peft_adapter(tmp_path / "biased", base, "qwen2", bias="all"))
    other = outputs(peft_adapter(tmp_path / "other", base, "qwen2", seed=2))
    adapted = loaded(base, biased=tmp_path / "biased", other=tmp_path / "other")
    for name, logits in (("biased", biased), ("other", other), ("biased", biased)):
        with acting(adapted.model, name) as model:
            close(outputs(model), logits)


@pytest.mark.slow_after(1)
@pytest.mark.filterwarnings("ignore")  # peft's, of what a conversion needs
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_converted_start_loads_and_one_that_changes_its_base_is_refused(tmp_path: Path, start: str) -> None:
    base = base_of(tmp_path / "base", "llama")
    peft_adapter(tmp_path / "raw", base, init_lora_weights=start)
    with pytest.raises(AdapterError, match=start) as caught:
        loaded(base, mine=tmp_path / "raw")
    assert caught.value.problems[0].key == "init_lora_weights"
    model = get_peft_model(load_base(base), LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=start))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    disturb({name: weight for name, weight in model.named_parameters() if weight.requires_grad})
    trained = outputs(model.eval())
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    close(outputs(loaded(base, mine=tmp_path / "lora").model), trained)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("trainable_token_indices", [3, 9]),
        ("trainable_token_indices", [3, 9, 100_000]),
        ("trainable_token_indices", [3, 9, -1]),
        ("bias", "some"),
        ("target_parameters", "experts"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(tmp_path: Path, key: str, value: object) -> None:
    base = base_of(tmp_path / "base", "llama")
    peft_adapter(tmp_path / "adapter", base, trainable_token_indices=[3, 9, 200])
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(AdapterError) as caught:
        loaded(base, mine=tmp_path / "adapter")
    assert key in (caught.value.problems[0].key or "")


def test_a_bias_without_a_place_is_not_merged(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "llama")
    adapter, theirs = tmp_path / "adapter", None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = outputs(peft_adapter(adapter, base, lora_bias=True))
    adapted = loaded(base, mine=adapter)
    assert torch.equal(outputs(adapted.model), theirs)
    for merge in (lambda: merged(adapted), lambda: prepared(str(adapter))):
        with pytest.raises(AdapterError, match="bias"):
            merge()


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")  # peft's: it merges none either
def test_an_update_of_a_convolution_is_loaded_and_refused_by_a_merge_before_it_writes(tmp_path: Path) -> None:
    base, sizes = tmp_path / "base", {name: SIZES[name] for name in SIZES if name != "head_dim"}
    config = Lfm2Config(**sizes, layer_types=["conv", "full_attention", "conv"], pad_token_id=0, eos_token_id=2)
    Lfm2ForCausalLM(config).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    theirs = outputs(peft_adapter(tmp_path / "adapter", base, r=32, target_modules=["q_proj", "conv.conv"]))
    close(outputs(loaded(base, mine=tmp_path / "adapter").model), theirs)
    (updates,) = inspect_layers(str(tmp_path / "adapter")).adapters
    assert {key.split(".lora_")[0][-9:] for key in updates.unread} == {"conv.conv"}
    with pytest.raises(AdapterError, match=r"conv\.conv, a Conv1d, cannot be merged") as caught:
        prepared(str(tmp_path / "adapter"))
    assert caught.value.problems[0].where == str(tmp_path / "adapter/adapter_model.safetensors")


@pytest.mark.slow
def test_what_is_not_one_update_is_not_summed(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "qwen2")
    for name, lora in {"biases": {"bias": "all"}, "tokens": {"trainable_token_indices": [3]}}.items():
        peft_adapter(tmp_path / name, base, "qwen2", **lora)
        with pytest.raises(AdapterError, match=name[:5]):
            prepared(f"{tmp_path / name}=0.5")
    peft_adapter(tmp_path / "half", base, "qwen2", lora_bias=True, target_modules=["q_proj"])
    model = load_base(written(prepared(f"{tmp_path / 'half'}=0.5"), tmp_path / "merged"), "qwen2")
    half = PeftModel.from_pretrained(load_base(base, "qwen2"), tmp_path / "half")
    for module in half.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 0.5
    close(outputs(model), outputs(half.eval()))


def test_an_adapted_weight_answers_in_decoding_too(tmp_path: Path) -> None:
    """The products that decoding computes in its own way are of the module's own weight."""
    base = base_of(tmp_path / "base", "llama")
    peft_adapter(tmp_path / "adapter", base, **SHAPES["weights as parameters"][1])
    model = loaded(base, mine=tmp_path / "adapter").model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = outputs(model)
        with patch_decode_linears(model, torch.bfloat16):
            assert torch.equal(outputs(model), before)


@pytest.mark.slow
def test_the_merge_proves_an_adapter_of_experts(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "mixtral")
    peft_adapter(tmp_path / "adapter", base, "mixtral", target_parameters=FUSED)
    report = api.merge(str(tmp_path / "adapter"))
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-4


@pytest.mark.slow
def test_experts_that_the_base_s_files_hold_one_by_one_are_merged_too(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "mixtral")
    theirs = outputs(peft_adapter(tmp_path / "adapter", base, "mixtral", target_parameters=FUSED))
    close(outputs(loaded(base, mine=tmp_path / "adapter").model), theirs)
    merge = prepared(str(tmp_path / "adapter"))
    close(outputs(load_base(written(merge, tmp_path / "merged"), "mixtral")), theirs)
