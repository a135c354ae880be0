"""What an adapter changed, against the dense matrices that the code never forms, and against peft's own merge."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from loraft.errors import AdapterError, ModelError
from loraft.inspection.layers_report import LayersReport, inspect_layers
from tests.tiny import save_tiny, tiny_model

RANDOM = torch.Generator()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=RANDOM.manual_seed(seed))


def base_in(folder: Path, model_type: str = "llama") -> Path:
    if model_type == "t5":
        tiny_model("t5").save_pretrained(folder)
        return folder
    return save_tiny(folder, model_type)


def adapter_on(base: Path, folder: Path, *, seed: int = 0, model_type: str = "llama", **lora: Any) -> Path:
    """An adapter of another tool: peft alone, moved as training would."""
    made_by = AutoModelForSeq2SeqLM if model_type == "t5" else AutoModelForCausalLM
    model = made_by.from_pretrained(base)
    names = {"gpt2": ["c_attn"], "t5": ["q", "v"]}.get(model_type, ["q_proj", "v_proj"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": names, **lora}))
    for number, (name, weight) in enumerate(sorted(wrapped.named_parameters())):
        if weight.requires_grad:
            moved = drawn(*weight.shape, seed=1000 * seed + number)
            weight.data.add_(moved if "lora_B" not in name else 0.1 * moved, alpha=0.3)
    with warnings.catch_warnings():  # peft says that it saves adapted embeddings whole besides
        warnings.simplefilter("ignore", UserWarning)
        wrapped.save_pretrained(folder)
    return folder


def edit(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


LORAS: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"use_dora": True}]


def only(report: LayersReport) -> Any:
    assert len(report.adapters) == 1
    return report.adapters[0]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("model_type", "lora"),
    [
        *(("llama", lora) for lora in LORAS),
        *((model_type, lora) for lora in LORAS for model_type in ("gpt2", "t5")),
    ],
    ids=str,
)
def test_norms_are_those_of_what_peft_merges(tmp_path: Path, model_type: str, lora: dict[str, Any]) -> None:
    base = base_in(tmp_path / "base", model_type)
    fan = {"fan_in_fan_out": True} if model_type == "gpt2" else {}
    folder = adapter_on(base, tmp_path / "a", model_type=model_type, **lora, **fan)
    adapter = only(inspect_layers(str(folder)))
    from peft import PeftModel

    made_by = AutoModelForSeq2SeqLM if model_type == "t5" else AutoModelForCausalLM
    before = dict(made_by.from_pretrained(base).named_parameters())
    after = dict(PeftModel.from_pretrained(made_by.from_pretrained(base), folder).merge_and_unload().named_parameters())
    assert len(adapter.modules) == {"llama": 6, "gpt2": 3, "t5": 2 * 3 + 4 * 2}[model_type]
    for move in adapter.modules:
        old, new = (weights[f"{move.path}.weight"].detach() for weights in (before, after))
        assert move.norm == pytest.approx(float((new - old).norm()), rel=1e-3)  # peft merges in float32
        assert move.relative == pytest.approx(move.norm / float(old.norm()), rel=1e-5)
        assert 1 < move.effective_rank <= 4
    assert adapter.norm == pytest.approx(math.sqrt(sum(move.norm**2 for move in adapter.modules)))
    assert adapter.kind == {"use_rslora": "rsLoRA", "use_dora": "DoRA"}.get(next(iter(lora), ""), "LoRA")


def test_patterns_decide_the_scale(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    folder = adapter_on(base, tmp_path / "a", rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 5})
    moves = {move.name: move for move in only(inspect_layers(str(folder))).modules}
    assert (moves["self_attn.q_proj"].rank, moves["self_attn.q_proj"].scale) == (4, 1.5)
    assert (moves["self_attn.v_proj"].rank, moves["self_attn.v_proj"].scale) == (2, 2.5)


def test_layers_that_moved_are_told_in_their_stack(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", "t5")
    folder = adapter_on(base, tmp_path / "a", model_type="t5", target_modules=r"decoder\.block\.1\..*\.q")
    adapter = only(inspect_layers(str(folder)))
    assert [(layer.stack, layer.index) for layer in adapter.layers] == [("decoder", 1)]
    assert {move.name for move in adapter.modules} == {"layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"}


def test_lora_parameters_of_the_document_are_the_adapters_own(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a", modules_to_save=["model.norm"])
    report = inspect_layers(str(folder))
    document = report.as_dict()
    tensors = load_file(folder / "adapter_model.safetensors")
    lora = sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)
    assert document["lora"]["parameters"] == lora
    assert document["lora"]["source"] == "the adapter default"
    assert sum(m["lora_parameters"] for layer in document["layers"] for m in layer["modules"]) == lora
    assert [saved["name"] for saved in document["adapters"][0]["saved"]] == ["model.norm.weight"]
    assert document["adapters"][0]["saved"][0]["norm"] > 0
    json.dumps(document)


def test_dead_modules_are_told(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    edit(folder, lambda tensors: tensors[key].zero_())
    adapter = only(inspect_layers(str(folder)))
    assert adapter.dead == ("model.layers.1.self_attn.q_proj",)
    dead = next(move for move in adapter.modules if move.dead)
    assert (dead.norm, dead.relative, dead.effective_rank) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_c23_values_that_are_not_finite_are_told_and_no_crash(tmp_path: Path, value: float) -> None:
    """C23: such an adapter is refused where it is used; here it is looked at."""
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    key = "base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"
    edit(folder, lambda tensors: tensors[key][0, 0].fill_(value))
    adapter = only(inspect_layers(str(folder)))
    assert adapter.non_finite == ("model.layers.2.self_attn.v_proj",)
    assert adapter.norm is None
    assert [layer.index for layer in adapter.layers] == [0, 1]
    assert sum(move.finite for move in adapter.modules) == 5


def test_c14_the_adapters_dtypes_are_told(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    assert only(inspect_layers(str(folder))).dtypes.keys() == {"F32"}

    def to_half(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: t.to(torch.bfloat16) for name, t in tensors.items() if "lora_A" in name})

    edit(folder, to_half)
    assert only(inspect_layers(str(folder))).dtypes.keys() == {"F32", "BF16"}


def test_keys_of_tools_that_leave_the_adapters_name_in_them(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    expected = only(inspect_layers(str(folder)))

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(".weight", ".my-adapter.weight")] = tensors.pop(name)

    edit(folder, renamed)
    assert only(inspect_layers(str(folder))).modules == expected.modules


def test_an_adapted_embedding(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    folder = adapter_on(base, tmp_path / "a", target_modules=["embed_tokens"])
    adapter = only(inspect_layers(str(folder)))
    embedding = adapter.modules[0]
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (next(t for name, t in tensors.items() if f"embedding_{part}" in name) for part in "AB")
    assert (embedding.path, embedding.index) == ("model.embed_tokens", None)
    assert embedding.norm == pytest.approx(float((1.5 * b @ a).norm()), rel=1e-5)
    assert embedding.relative is not None
    assert list(adapter.saved) == []  # it is updated, and not trained whole


def test_without_its_base_an_adapter_is_looked_at_all_the_same(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    folder = adapter_on(base, tmp_path / "a")
    with_base = only(inspect_layers(str(folder)))
    base.rename(tmp_path / "moved")
    report = inspect_layers(str(folder))
    assert report.table is None
    assert "which is not there" in report.notes[0]
    assert [move.norm for move in only(report).modules] == [move.norm for move in with_base.modules]
    assert all(move.relative is None for move in only(report).modules)
    assert {layer.stack for layer in only(report).layers} == {"model.layers"}
    mended = only(inspect_layers(str(folder), base_model=str(tmp_path / "moved")))
    assert mended.modules == with_base.modules
    with pytest.raises(ModelError):
        inspect_layers(str(folder), base_model="nowhere-at-all")


def test_a_base_on_the_hub_that_cannot_be_had_is_a_note(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/not-here"}))
    report = inspect_layers(str(folder))
    assert report.table is None
    assert "org/not-here is not at hand" in report.notes[0]
    assert only(report).norm is not None


def test_without_the_base_what_magnitudes_change_is_not_told(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a", use_dora=True)
    assert inspect_layers(str(folder)).notes == ()
    (tmp_path / "base").rename(tmp_path / "moved")
    report = inspect_layers(str(folder))
    assert "DoRA's magnitudes" in report.notes[-1]
    assert only(report).norm is not None


def test_a_base_with_other_weights_than_the_recorded_ones_is_told(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    (folder / "loraft.json").write_text(json.dumps({"base": {"fingerprint": "sha256:other"}}))
    assert "trained on other base weights" in inspect_layers(str(folder)).notes[0]


# Two adapters


def dense_cosine(one: Path, other: Path, part: str) -> float:
    def flat(folder: Path) -> torch.Tensor:
        tensors = {name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        names = sorted({name.split(".lora_")[0] for name in tensors if part in name})
        products = [tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names]
        return torch.cat([product.flatten() for product in products])

    return float(torch.nn.functional.cosine_similarity(flat(one), flat(other), dim=0))


def test_cosines_of_two_adapters_are_those_of_their_dense_updates(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    one, other = adapter_on(base, tmp_path / "one"), adapter_on(base, tmp_path / "other", seed=1, r=2)
    report = inspect_layers(None, [f"a={one}", f"b={other}"])
    (alike,) = report.likenesses
    assert (alike.one, alike.other) == ("a", "b")
    assert alike.cosine == pytest.approx(dense_cosine(one, other, "layers"), abs=1e-9)
    for (stack, index), cosine in alike.layers.items():
        assert stack == "decoder"
        assert cosine == pytest.approx(dense_cosine(one, other, f"layers.{index}."), abs=1e-9)
    name = "model.layers.0.self_attn.q_proj"
    assert alike.modules[name] == pytest.approx(dense_cosine(one, other, name), abs=1e-9)


def test_an_adapter_is_like_itself_and_its_opposite_is_not(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    one, other = adapter_on(base, tmp_path / "one"), adapter_on(base, tmp_path / "other")
    assert inspect_layers(str(one), [f"b={other}"]).likenesses[0].cosine == pytest.approx(1.0)

    def turned(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.mul_(-1 if "lora_B" in name else 1)

    edit(other, turned)
    report = inspect_layers(str(one), [str(other)])
    assert [adapter.name for adapter in report.adapters] == ["one", "other"]
    assert report.likenesses[0].cosine == pytest.approx(-1.0)


def test_adapters_of_different_modules_are_not_compared(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    one = adapter_on(base, tmp_path / "one", target_modules=["q_proj"])
    other = adapter_on(base, tmp_path / "other", target_modules=["v_proj"])
    report = inspect_layers(None, [str(one), str(other)])
    assert report.likenesses == ()
    assert "one and other adapt no module in common" in report.notes


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of the kind PREFIX_TUNING"),
        ({"lora_alpha": "many"}, "is no number"),
        ({"lora_alpha": None}, "is no number"),
        ({"alpha_pattern": {"q_(proj": 4}}, "is not a regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "does not give numbers"),
    ],
)
def test_what_is_no_lora_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        inspect_layers(str(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_numbers_that_no_adapter_has_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="and adapters have floating ones"):
        inspect_layers(str(folder))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = adapter_on(base_in(tmp_path / "base"), tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(AdapterError, match="cannot be read"):
        inspect_layers(str(folder))
    file.write_bytes(whole)
    edit(folder, lambda tensors: tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"))
    with pytest.raises(AdapterError, match=r"no B of model\.layers\.0\.self_attn\.q_proj$"):
        inspect_layers(str(folder))
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights can run code"):
        inspect_layers(str(folder))
