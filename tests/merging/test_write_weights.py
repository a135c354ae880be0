"""An adapter folded into its base, from files to files: merged == adapted, whatever the architecture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraft.errors import AdapterError, ModelError, NonFiniteError
from loraft.merging.merged_tensors import plan_files
from loraft.merging.write_weights import write_weights
from loraft.models.safetensors_index import read_headers
from tests.merging.merging import KINDS, load_base, outputs, peft_adapter, prepared, save_base, written

EXACT = 1e-5
"""The order of float32 sums differs between two products and one."""
SHAPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 3}},
}


def merged_outputs(merge: Any, folder: Path, kind: str = "llama") -> torch.Tensor:
    return outputs(load_base(written(merge, folder), kind))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow_after(3)
@pytest.mark.parametrize("kind", KINDS)
def test_c27_merged_is_adapted(tmp_path: Path, kind: str, shape: str) -> None:
    base = save_base(tmp_path / "base", kind)
    adapted = peft_adapter(tmp_path / "adapter", base, kind, **SHAPES[shape])
    merged = merged_outputs(prepared(str(tmp_path / "adapter")), tmp_path / "out", kind)
    assert not torch.allclose(merged, outputs(load_base(base, kind)), atol=1e-3), "the adapter has an effect"
    torch.testing.assert_close(merged, outputs(adapted), atol=EXACT, rtol=EXACT)
    by_peft = adapted.merge_and_unload()
    torch.testing.assert_close(merged, outputs(by_peft), atol=EXACT, rtol=EXACT)


def test_c27_an_embedding_is_adapted_as_it_is_stored(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapted = peft_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens"])
    merged = merged_outputs(prepared(str(tmp_path / "adapter")), tmp_path / "out")
    torch.testing.assert_close(merged, outputs(adapted), atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("whole", [["lm_head"], ["embed_tokens", "norm"], ["lm_head", "embed_tokens"]])
def test_c27_modules_that_were_trained_whole_replace_those_of_the_base(tmp_path: Path, whole: list[str]) -> None:
    base = save_base(tmp_path / "base")
    adapted = peft_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=whole)
    merge = prepared(str(tmp_path / "adapter"))
    torch.testing.assert_close(merged_outputs(merge, tmp_path / "out"), outputs(adapted), atol=EXACT, rtol=EXACT)


def test_c20_the_head_of_a_classifier_is_merged(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "bert classifier")
    adapted = peft_adapter(tmp_path / "adapter", base, "bert classifier", task_type="SEQ_CLS")
    out = written(prepared(str(tmp_path / "adapter")), tmp_path / "out")
    torch.testing.assert_close(outputs(load_base(out, "bert classifier")), outputs(adapted), atol=EXACT, rtol=EXACT)
    assert not torch.equal(
        load_file(out / "model.safetensors")["classifier.weight"],
        load_file(base / "model.safetensors")["classifier.weight"],
    )


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["head whole", "embedding whole", "head adapted", "embedding adapted"],
)
def test_c22_a_tie_that_the_adapter_breaks_is_broken_in_the_result(tmp_path: Path, lora: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", "llama tied")
    adapted = peft_adapter(tmp_path / "adapter", base, "llama tied", **lora)
    merge = prepared(str(tmp_path / "adapter"))
    out = written(merge, tmp_path / "out")
    torch.testing.assert_close(outputs(load_base(out)), outputs(adapted), atol=EXACT, rtol=EXACT)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert dict(merge.plan.untied) == {"lm_head.weight": "model.embed_tokens.weight"}
    with_head = load_file(out / "model.safetensors")
    assert not torch.equal(with_head["lm_head.weight"], with_head["model.embed_tokens.weight"])


def test_c22_a_tie_that_no_adapter_touches_is_kept(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama tied")
    peft_adapter(tmp_path / "adapter", base, "llama tied")
    out = written(prepared(str(tmp_path / "adapter")), tmp_path / "out")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    model = load_base(out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_c22_an_architecture_that_must_tie_refuses_a_head_of_its_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "t5")
    peft_adapter(tmp_path / "adapter", base, "t5", target_modules=["q"], modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match=r"one side of a weight that shared\.weight and lm_head\.weight share"):
        prepared(str(tmp_path / "adapter"))


@pytest.mark.slow
def test_several_adapters_are_summed_with_their_weights(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name, seed in (("a", 1), ("b", 2)):
        peft_adapter(tmp_path / name, base, seed=seed, r=3 + seed)
    merge = prepared(f"{tmp_path}/a=0.7", f"{tmp_path}/b=-0.3")
    merged = merged_outputs(merge, tmp_path / "out")
    by_hand = load_base(base)
    for key in by_hand.state_dict():
        if key.endswith("_proj.weight"):
            change = 0.7 * change_of(tmp_path / "a", key) - 0.3 * change_of(tmp_path / "b", key)
            by_hand.get_parameter(key).data += change
    torch.testing.assert_close(merged, outputs(by_hand), atol=EXACT, rtol=EXACT)


def change_of(adapter: Path, key: str) -> torch.Tensor:
    """Alpha / r · B A of one module, by hand."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    module = f"base_model.model.{key.removesuffix('.weight')}"
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    return 8 / a.shape[0] * b @ a


@pytest.mark.parametrize(
    ("lora", "said"), [({"use_dora": True}, "is a DoRA"), ({"modules_to_save": ["norm"]}, "trained whole")]
)
def test_what_has_no_sum_is_refused(tmp_path: Path, lora: dict[str, Any], said: str) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "a", base, target_modules=["q_proj"])
    peft_adapter(tmp_path / "b", base, target_modules=["q_proj"], **lora)
    with pytest.raises(AdapterError, match=said):
        prepared(f"{tmp_path}/a=0.5", f"{tmp_path}/b=0.5")
    with pytest.raises(AdapterError, match=said):
        prepared(f"{tmp_path}/b=0.5")
    prepared(f"{tmp_path}/b")


def test_shards_come_out_as_they_went_in(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", shard="40KB")
    adapted = peft_adapter(tmp_path / "adapter", base)
    out = written(prepared(str(tmp_path / "adapter")), tmp_path / "out")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in out.glob("*.safetensors")) == shards
    index, before = (json.loads((each / "model.safetensors.index.json").read_text()) for each in (out, base))
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] == sum(header.stop - header.start for header in read_headers(out).values())
    torch.testing.assert_close(outputs(load_base(out)), outputs(adapted), atol=EXACT, rtol=EXACT)


def test_files_that_leave_out_the_first_part_of_names_are_merged_under_their_names(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt2")
    adapted = peft_adapter(tmp_path / "adapter", base, "gpt2")
    tensors = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)  # a mask that older files hold
    save_file(short, base / "model.safetensors", {"format": "pt"})
    out = written(prepared(str(tmp_path / "adapter"), dtype="float32"), tmp_path / "out")
    assert load_file(out / "model.safetensors").keys() == short.keys()
    torch.testing.assert_close(outputs(load_base(out, "gpt2")), outputs(adapted), atol=EXACT, rtol=EXACT)


def test_an_old_name_of_a_head_is_merged_under_it(tmp_path: Path) -> None:
    """GPT-NeoX's head was called embed_out."""
    base = save_base(tmp_path / "base", "gpt_neox")
    adapted = peft_adapter(tmp_path / "adapter", base, "gpt_neox", target_modules=["lm_head", "dense"])
    tensors = load_file(base / "model.safetensors")
    old = {re.sub(r"^lm_head\.", "embed_out.", name): tensor for name, tensor in tensors.items()}
    assert "embed_out.weight" in old
    save_file(old, base / "model.safetensors", {"format": "pt"})
    merge = prepared(str(tmp_path / "adapter"))
    torch.testing.assert_close(
        merged_outputs(merge, tmp_path / "out", "gpt_neox"), outputs(adapted), atol=EXACT, rtol=EXACT
    )


@pytest.mark.slow
def test_c25_the_sum_is_float32_and_cast_once(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    peft_adapter(tmp_path / "adapter", base)
    key = "model.layers.1.mlp.up_proj.weight"
    before = load_file(base / "model.safetensors")[key]
    expected = before.float() + change_of(tmp_path / "adapter", key)
    for choice, dtype in (
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("float16", torch.float16),
    ):
        merge = prepared(str(tmp_path / "adapter"), dtype=choice)
        out = written(merge, tmp_path / choice)
        found = load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        assert torch.equal(found[key], expected.to(dtype)) or torch.allclose(found[key].float(), expected, atol=1e-6)
        assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
        assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype


def test_tensors_that_nothing_changes_are_the_bases_bytes(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    peft_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], layers_to_transform=[1])
    merge = prepared(str(tmp_path / "adapter"))
    found = load_file(written(merge, tmp_path / "out") / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert {name for name in before if not torch.equal(before[name], found[name])} == {
        "model.layers.1.self_attn.q_proj.weight"
    }


def damaged(adapter: Path, change: Any) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.update({"base_model.model.extra.lora_A.weight": torch.ones(4, 4)}), "no place for"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}), "no place for"),
        (lambda tensors: tensors.pop(KEY), f"{KEY} is missing"),
        (lambda tensors: tensors.update({KEY: torch.ones(4, 31)}), r"is \[4, 31\] and the base needs \[4, 32\]"),
        (lambda tensors: tensors[KEY].fill_(torch.nan), "NaN or infinity"),
    ],
    ids=["left over", "outside", "missing", "shape", "nan"],
)
def test_c23_every_tensor_of_an_adapter_is_merged_or_is_an_error(tmp_path: Path, change: Any, said: str) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    damaged(tmp_path / "adapter", change)
    with pytest.raises(AdapterError, match=said):
        prepared(str(tmp_path / "adapter"))


def test_numbers_that_overflow_in_the_merge_are_found(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    damaged(tmp_path / "adapter", lambda tensors: tensors[KEY].fill_(1e6))
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight holds NaN or infinity(.|\n)*use bfloat16"):
        written(prepared(str(tmp_path / "adapter"), dtype="float16"), tmp_path / "out")


def test_c40_float16_is_refused_where_activations_overflow_in_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "t5")
    peft_adapter(tmp_path / "adapter", base, "t5")
    with pytest.raises(ModelError, match="not stable in float16"):
        prepared(str(tmp_path / "adapter"), dtype="float16")


def test_an_adapter_whose_config_names_an_absolute_path_as_the_base(tmp_path: Path) -> None:
    """By hand, hostile: nothing is read there but a model's config and weights, and what is missing is told."""
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    for place, said in (
        ("/etc/passwd", "is a file, and a model is a folder"),
        ("/etc", "holds no model"),
        ("/absent/x", "not there"),
    ):
        edit_config(tmp_path / "adapter", base_model_name_or_path=place)
        with pytest.raises((AdapterError, ModelError), match=said):
            prepared(str(tmp_path / "adapter"))
    merge = prepared(str(tmp_path / "adapter"), base_model=str(base))
    assert "names /absent/x as its base" in merge.notes[0]


def test_an_adapter_that_names_another_base(tmp_path: Path) -> None:
    """By hand, hostile: a base of other sizes is told by every tensor that does not fit."""
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    other = save_base(tmp_path / "other", "phi3")
    edit_config(tmp_path / "adapter", base_model_name_or_path=str(other))
    with pytest.raises(AdapterError, match="the base has no place for the tensor"):
        prepared(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"names .*other as its base, and not .*base(.|\n)*`base_model="):
        prepared(str(tmp_path / "adapter"), target=str(base))


def edit_config(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_base_with_a_tensor_cut_short_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        prepared(str(tmp_path / "adapter"))


@pytest.mark.slow
def test_progress_goes_from_nothing_to_all_of_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", shard="40KB")
    peft_adapter(tmp_path / "adapter", base)
    merge = prepared(str(tmp_path / "adapter"))
    told: list[tuple[int, int]] = []
    (tmp_path / "out").mkdir()
    total = write_weights(merge, tmp_path / "out", lambda done, of: told.append((done, of)))
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert total == sum(slot.num_bytes for slots in plan_files(merge).values() for slot in slots)
    assert total + 8 < sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
