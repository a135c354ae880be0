"""A merge from beginning to end on tiny models: written, compared, and there only if it is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from loraft import api
from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import AdapterError, LoraftError, ModelError, OutOfMemoryError, VerificationError
from loraft.events import Event, Note, Progress
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.merging.calibration_text import built_in_rows
from loraft.merging.equivalence import kl_divergence
from loraft.merging.merge_plan import MergePlan, plan_merge
from loraft.merging.merge_report import MergeReport
from loraft.merging.write_weights import write_weights
from loraft.models.device import DeviceConfig
from loraft.models.load_model import load_model
from tests.adapters.setting import IDS, disturb, logits
from tests.merging.merging import (
    KINDS,
    load_base,
    outputs,
    own_adapter,
    peft_adapter,
    save_base,
)
from tests.tiny import mostly_slow, tiny_tokenizer

CONTRACT = [
    "base",
    "dtype",
    "max_abs_logit_difference",
    "kl_adapted_merged",
    "kl_adapted_base",
    "top1_agreement",
    "positions",
]
STORAGES = [
    QuantizationSection.model_validate({"type": kind, "double_quant": double})
    for kind in ("nf4", "fp4")
    for double in (True, False)
]


def said(report: MergeReport) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((report.out / "merge_report.json").read_text())
    return values


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "lora", [{}, {"use_rslora": True, "alpha": 4}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_c27_a_merge_in_float32_is_proven(tmp_path: Path, lora: dict[str, Any]) -> None:
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"), **lora)
    events: list[Event] = []
    report = api.merge(str(tmp_path / "run"), observer=events.append)
    assert report.out == tmp_path / "run/merged"
    assert (report.base, report.dtype, report.warnings) == ("original", "float32", ())
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-4
    assert report.top1_agreement == 1.0
    assert report.positions == 256
    assert report.kl_adapted_base is not None
    assert report.kl_adapted_base > 0.01
    assert list(said(report))[: len(CONTRACT)] == CONTRACT
    assert said(report)["kl_adapted_merged"] == report.kl_adapted_merged
    assert {event.what for event in events if isinstance(event, Progress)} == {"bytes merged", "positions compared"}
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == 3 * 256
    assert "same likeliest token" in (report.out / "README.md").read_text()


@pytest.mark.slow
def test_the_figures_of_the_proof_are_those_of_transformers_and_peft(tmp_path: Path) -> None:
    """Measured again, from the files alone and on the same text."""
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    peft_adapter(tmp_path / "adapter", base)
    report = api.merge(str(tmp_path / "adapter"), tmp_path / "out", positions=300)
    texts = [torch.tensor([ids]) for ids in built_in_rows(tiny_tokenizer()).ids]

    def read(model: nn.Module, *, autocast: bool = False) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
            return torch.cat([model(input_ids=ids).logits[0].float() for ids in texts])[:300]

    adapted = PeftModel.from_pretrained(load_base(base, dtype=torch.bfloat16), tmp_path / "adapter")
    trained = read(adapted, autocast=True)
    merged = read(load_base(tmp_path / "out", dtype=torch.bfloat16), autocast=True)
    plain = read(load_base(base, dtype=torch.bfloat16), autocast=True)
    assert report.positions == 300
    assert report.kl_adapted_merged == pytest.approx(float(kl_divergence(trained, merged).mean()), rel=1e-3)
    assert report.kl_adapted_base == pytest.approx(float(kl_divergence(trained, plain).mean()), rel=1e-3)
    assert report.max_abs_logit_difference == pytest.approx(float((trained - merged).abs().max()), rel=1e-3)
    assert report.top1_agreement == pytest.approx(float((trained.argmax(-1) == merged.argmax(-1)).float().mean()))


def in_4_bits(base: Path, adapter: Path, stored: QuantizationSection, dtype: torch.dtype) -> PeftModel:
    """The adapter on its base in 4 bits, by peft and transformers."""
    loaded = load_model(
        ModelSection(name_or_path=str(base)), DeviceConfig("cpu", dtype, "test", 0, 0, ()), quantization=stored
    )
    return PeftModel.from_pretrained(loaded.model, adapter)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", mostly_slow(STORAGES, STORAGES[0]), ids=str)
def test_c26_a_4_bit_adapter_is_merged_into_the_base_that_it_knows(
    tmp_path: Path, stored: QuantizationSection, dtype: torch.dtype
) -> None:
    """C12 too: the 4-bit model has answered before its files are merged, in the same process."""
    base = save_base(tmp_path / "base")
    adapted = own_adapter(tmp_path / "run/adapter", base, "qlora", dtype=dtype, quantization=stored)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        adapted.model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
    for merged_dtype, limit in (("float32", 2e-3), ("bfloat16", 1e-2)):
        report = api.merge(str(tmp_path / "run"), tmp_path / merged_dtype, dtype=merged_dtype)
        assert (report.base, report.dtype) == ("dequantized", merged_dtype)
        is_rounded = (dtype, merged_dtype) == (torch.float32, "bfloat16")
        assert report.compared_tensors == (0 if is_rounded else 30), "the base is rounded once more than the merge"
        assert "as training saw it" in report.why_this_base
        assert report.kl_adapted_merged is not None
        assert report.kl_adapted_merged <= limit
        assert "quantization_config" not in json.loads((report.out / "config.json").read_text())
        merged = AutoModelForCausalLM.from_pretrained(report.out, dtype="auto")
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            trained = logits(in_4_bits(base, tmp_path / "run/adapter", stored, dtype))
        assert kl_divergence(trained, logits(merged)).mean() <= max(limit, 1e-2 if dtype == torch.bfloat16 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_c26_what_is_in_few_bits_and_not_adapted_is_compared_too(tmp_path: Path, base: str, kind: str) -> None:
    """GPT-2's weights are transposed in its files, and not in few bits; constants are no tensors of the result."""
    stored = QuantizationSection.model_validate({"type": kind})
    targets = ["q_proj"] if base == "llama" else ["attn.c_attn"]
    own_adapter(
        tmp_path / "run/adapter", save_base(tmp_path / "base", base), "qlora", quantization=stored,
        target_modules=targets,
    )  # fmt: skip
    report = api.merge(str(tmp_path / "run"))
    model = load_base(report.out, base)
    assert report.compared_tensors == len(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "products"), [("llama", "auto"), ("llama", "float32"), ("gemma", "auto")])
def test_c26_float32_of_a_base_that_was_trained_in_bfloat16_is_exact(tmp_path: Path, kind: str, products: str) -> None:
    """Gemma rounds the scale of its embeddings to the dtype that it is loaded in."""
    stored = QuantizationSection.model_validate({"compute_dtype": products})
    base = save_base(tmp_path / "base", kind)
    own_adapter(tmp_path / "run/adapter", base, "qlora", quantization=stored, dtype=torch.bfloat16)
    report = api.merge(str(tmp_path / "run"))
    assert report.dtype == "float32"
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-4


@pytest.mark.slow
def test_c26_the_original_base_is_a_choice_and_said(tmp_path: Path) -> None:
    stored = QuantizationSection.model_validate({"type": "fp4"})
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"), "qlora", quantization=stored)
    notes: list[Event] = []
    right = api.merge(str(tmp_path / "run"), tmp_path / "right")
    report = api.merge(str(tmp_path / "run"), tmp_path / "out", base="original", observer=notes.append)
    assert report.base == "original"
    assert "not the model that was trained" in report.why_this_base
    assert any(isinstance(event, Note) and "merged into the original one" in event.text for event in notes)
    assert right.kl_adapted_merged is not None
    assert report.kl_adapted_merged is not None
    assert report.kl_adapted_merged > 1000 * right.kl_adapted_merged


@pytest.mark.slow
def test_c26_products_in_a_dtype_of_their_own_are_compared_as_they_were_trained(tmp_path: Path) -> None:
    stored = QuantizationSection(compute_dtype="bfloat16")
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"), "qlora", quantization=stored)
    report = api.merge(str(tmp_path / "run"))
    assert report.kl_adapted_merged is not None
    assert report.kl_adapted_merged <= 1e-2


@pytest.mark.slow
def test_a_foreign_adapter_can_be_merged_into_a_dequantized_base(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "adapter", save_base(tmp_path / "base"))
    events: list[Event] = []
    report = api.merge(str(tmp_path / "adapter"), base="dequantized", observer=events.append)
    assert (report.base, report.out) == ("dequantized", tmp_path / "merged")
    assert any(isinstance(event, Note) and "nf4 with double quantization is assumed" in event.text for event in events)
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-4


@pytest.mark.slow
def test_c25_a_small_adapter_in_bfloat16_is_warned_of_or_fails_and_float32_keeps_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    own_adapter(tmp_path / "small/adapter", base, amount=0.004, dtype=torch.bfloat16)
    own_adapter(tmp_path / "smaller/adapter", base, amount=0.001, dtype=torch.bfloat16)
    report = api.merge(str(tmp_path / "small"))
    assert report.dtype == "bfloat16"
    assert "of the adapter's effect" in report.warnings[0]
    assert "`dtype='float32'`" in report.warnings[0]
    assert report.warnings[0] in said(report)["warnings"]
    with pytest.raises(VerificationError, match="lost more than it kept"):
        api.merge(str(tmp_path / "smaller"))
    assert sorted(path.name for path in (tmp_path / "smaller").iterdir()) == ["adapter"]
    kept = api.merge(str(tmp_path / "smaller"), dtype="float32")
    assert kept.warnings == ()
    written = api.merge(str(tmp_path / "smaller"), overwrite=True, verified=False)
    assert said(written)["kl_adapted_merged"] is None
    assert not written.verified


@pytest.mark.slow
def test_an_adapter_that_was_never_trained_is_told_to_change_nothing(tmp_path: Path) -> None:
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"), amount=0.0)
    for verified in (True, False):
        report = api.merge(str(tmp_path / "run"), verified=verified, overwrite=True)
        assert "the adapter changes nothing" in report.warnings[0]


@pytest.mark.slow
def test_a_merge_that_is_wrong_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"))

    def twice(merge: Any, folder: Path, progress: Any) -> int:
        size = write_weights(merge, folder, progress)
        model = load_base_of(folder)
        model.model.layers[0].mlp.up_proj.weight.data *= 1.01
        model.save_pretrained(folder)
        return size

    def load_base_of(folder: Path) -> Any:
        (folder / "config.json").write_text((tmp_path / "base/config.json").read_text())
        return load_base(folder)

    monkeypatch.setattr("loraft.merging.merge_report.write_weights", twice)
    with pytest.raises(VerificationError, match=r"in float32 by more than 0\.001") as caught:
        api.merge(str(tmp_path / "run"))
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter"]


LEFT_OUT = {
    "an update": ("model.layers.1.self_attn.k_proj.weight", {}),
    "an update of files in float32": ("model.layers.1.self_attn.k_proj.weight", {}),
    "positions that no text reaches": (
        "transformer.wpe.weight",
        {"target_modules": ["c_attn"], "modules_to_save": ["wpe"]},
    ),
    "a row": ("model.embed_tokens.weight", {"target_modules": ["q_proj"], "trainable_token_indices": [250]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LEFT_OUT)
def test_c25_a_tensor_that_a_merge_leaves_out_is_found_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """One of many modules does little to the outputs, and rounding as much: the weights themselves are compared."""
    name, lora = LEFT_OUT[what]
    kind = "gpt2" if "wpe" in name else "llama"
    base = save_base(tmp_path / "base", kind, dtype=torch.float32 if "float32" in what else torch.bfloat16)
    peft_adapter(tmp_path / "adapter", base, kind, **lora)

    def incomplete(*given: Any) -> MergePlan:
        plan = plan_merge(*given)
        kept = {
            field: {key: value for key, value in getattr(plan, field).items() if key != name}
            for field in ("updates", "rows", "replaced")
        }
        assert sum(map(len, kept.values())) < len(plan.changed)
        return replace(plan, **kept)

    assert said(api.merge(str(tmp_path / "adapter"), tmp_path / "right", dtype="bfloat16"))["compared_tensors"] > 10
    monkeypatch.setattr("loraft.merging.prepare_merge.plan_merge", incomplete)
    with pytest.raises(VerificationError, match=f"other numbers than the adapted one in one tensor of .*: {name};"):
        api.merge(str(tmp_path / "adapter"), tmp_path / "wrong", dtype="bfloat16")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_a_tensor_that_a_model_may_make_by_itself_is_compared_where_files_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BART makes up the bias of its logits where files lack it."""
    peft_adapter(tmp_path / "adapter", save_base(tmp_path / "base", "bart"), "bart")

    def damaged(merge: Any, folder: Path, progress: Any) -> int:
        written = write_weights(merge, folder, progress)
        tensors = load_file(folder / "model.safetensors")
        tensors["final_logits_bias"] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return written

    monkeypatch.setattr("loraft.merging.merge_report.write_weights", damaged)
    with pytest.raises(VerificationError):
        api.merge(str(tmp_path / "adapter"), tmp_path / "wrong", dtype="float32")


def test_weights_that_do_not_fit_for_the_comparison_can_be_merged_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging goes file by file; only the comparison needs a whole model in memory."""
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(OutOfMemoryError, match=r"the weights do not fit (.|\n)*`verified=False`"):
        api.merge(str(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter"]


@pytest.mark.slow
def test_several_adapters_are_proven_together(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name, seed in (("a", 1), ("b", 2)):
        peft_adapter(tmp_path / name, base, seed=seed)
    report = api.merge(None, tmp_path / "out", [f"{tmp_path}/a=0.7", f"{tmp_path}/b=-0.3"])
    assert [each["weight"] for each in report.adapters] == [0.7, -0.3]
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-4
    alone = api.merge(str(base), tmp_path / "other", [f"{tmp_path}/a=0"])
    assert "the adapter changes nothing" in alone.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("t5", "bart", "bert"))])
def test_encoders_and_encoder_decoders_are_compared_by_what_they_give(tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base", kind)
    adapted = peft_adapter(tmp_path / "adapter", base, kind)
    report = api.merge(str(tmp_path / "adapter"), tmp_path / "out")
    assert report.max_abs_logit_difference is not None
    assert report.max_abs_logit_difference <= 1e-3
    assert report.compared == ("hidden states" if kind == "bert stack" else "logits")
    assert report.positions == (209 if kind == "bert classifier" else 256)
    torch.testing.assert_close(outputs(load_base(tmp_path / "out", kind)), outputs(adapted), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_run_here_says_how_to_merge_without(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    peft_adapter(tmp_path / "adapter", base)
    for file in base.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer(.|\n)*`verified=False`"):
        api.merge(str(tmp_path / "adapter"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    api.merge(str(tmp_path / "adapter"), tmp_path / "out", verified=False)


def test_c23_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    own_adapter(tmp_path / "run/adapter", base)
    model = load_base(base)
    disturb(dict(model.named_parameters()))
    model.save_pretrained(base)
    with pytest.raises(AdapterError, match="trained on other base weights"):
        api.merge(str(tmp_path / "run"))


@pytest.mark.slow
def test_what_was_merged_is_a_target_like_any_other(tmp_path: Path) -> None:
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"))
    report = api.merge(str(tmp_path / "run"))
    unmerged = api.generate(str(tmp_path / "run"), prompt="Hello", options=GenerationRequest(max_new_tokens=8))
    merged = api.generate(str(report.out), prompt="Hello", options=GenerationRequest(max_new_tokens=8))
    choice = ModelRequest(str(tmp_path / "run"), merge=True)
    in_memory = api.generate(choice, prompt="Hello", options=GenerationRequest(max_new_tokens=8))
    for answer in (unmerged, merged, in_memory):
        assert list(answer)
    assert merged.completion.prompt == unmerged.completion.prompt, "the system prompt went along"
    with pytest.raises(LoraftError, match="one adapter can be merged, and there are 0"):
        api.generate(ModelRequest(str(report.out), merge=True), prompt="Hello")


@pytest.mark.slow
def test_an_adapter_of_4_bits_is_merged_in_memory_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    stored = QuantizationSection(compute_dtype="bfloat16")
    own_adapter(tmp_path / "run/adapter", save_base(tmp_path / "base"), "qlora", quantization=stored)
    report = api.merge(str(tmp_path / "run"), dtype="float32")
    options = GenerationRequest(max_new_tokens=8)
    from_files = api.generate(ModelRequest(str(report.out), dtype="float32"), prompt="Hello", options=options)
    choice = ModelRequest(str(tmp_path / "run"), merge=True, dtype="float32")
    in_memory = api.generate(choice, prompt="Hello", options=options)
    assert list(in_memory) == list(from_files)


@pytest.mark.slow
def test_weighted_adapters_are_merged_beside_the_first_one(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name in ("a", "b"):
        own_adapter(tmp_path / f"runs/{name}/adapter", base)
    words = [f"{tmp_path / 'runs/a'}=0.7", f"{tmp_path / 'runs/b'}=0.3"]
    assert api.merge(None, None, words).out == tmp_path / "runs/a/merged"


@pytest.mark.slow
@pytest.mark.parametrize("order", [("q", "plain"), ("plain", "q")])
def test_adapters_of_bases_that_were_stored_differently_are_summed_on_the_original_one_alone(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    base = save_base(tmp_path / "base")
    own_adapter(tmp_path / "q", base, "qlora")
    own_adapter(tmp_path / "plain", base)
    words = [f"{tmp_path / name}=0.5" for name in order]
    with pytest.raises(AdapterError, match="stored differently"):
        api.merge(None, tmp_path / "out", words)
    told: list[Event] = []
    report = api.merge(None, tmp_path / "out", words, base="original", observer=told.append)
    assert any(isinstance(event, Note) and "stored differently" in event.text for event in told)
    assert "on which the adapter was trained" not in report.why_this_base
