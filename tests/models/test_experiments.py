"""Experiments on tiny copies: what is read as text alone, what asks for more, what an adapter learns something on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraft.adapters.targets import targets_in
from loraft.config.choices import ModelGroup
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, ModelError
from loraft.models.experiments import is_causal, unreached
from loraft.models.model_structure import by_structure
from loraft.models.modules import mark_text
from loraft.models.probe import spec_of
from loraft.models.tiny_copy import tried
from loraft.tasks.batches import BatchLayout
from loraft.tasks.loss import CausalLMLoss, Seq2SeqLMLoss
from loraft.tokenization.examples import Example
from tests.cli.running import loraft
from tests.tiny import tiny_model
from tests.training.building import rows, write_rows
from tests.zoo.models import build, save

MARKS = {"paligemma": ("token_type_ids", 1), "molmo2": ("mm_token_type_ids", 0)}
ROW = torch.arange(3, 17)[None]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", MARKS)
def test_what_tells_text_from_the_rest_is_found_and_given(model_type: str) -> None:
    model = build(model_type, "multimodal")
    found = spec_of(model.config, "decoder")
    assert found.text_mark == MARKS[model_type]
    assert len(found.unknown) == 1
    end = mark_text(model, found.text_mark)
    with torch.no_grad():
        assert is_causal(model.train())
    name, value = MARKS[model_type]
    given = {name: torch.full_like(ROW, value)}
    with torch.no_grad():
        assert torch.equal(model(input_ids=ROW).logits, model(input_ids=ROW, **given).logits)
        states = model.base_model(input_ids=ROW).last_hidden_state
        assert torch.equal(states, model.base_model(inputs_embeds=model.get_input_embeddings()(ROW)).last_hidden_state)
        other = model(input_ids=ROW, **{name: torch.full_like(ROW, 1 - value)}).logits
        assert not torch.equal(model(input_ids=ROW).logits, other)  # what the caller says stands
    end()
    assert not tried(is_causal, model.train())


@pytest.mark.parametrize(
    ("model_type", "group", "used_as", "said"),
    [
        ("blip", "multimodal", "decoder", "'pixel_values'"),
        ("reformer", "classification", "classifier", "sequence length"),
        ("canine", "classification", "classifier", "no vocab_size"),
        ("squeezebert", "classification", "classifier", "linear modules"),
    ],
)
def test_what_is_not_trained_on_text_alone_is_refused_with_what_it_asks_for(
    model_type: str, group: str, used_as: ModelGroup, said: str
) -> None:
    with pytest.raises(ModelError, match=f"model type '{model_type}'.*{said}") as raised:
        spec_of(build(model_type, group).config, used_as)
    assert raised.value.problems[0].key == "model.name_or_path"


@pytest.mark.slow
def test_it_is_refused_before_the_first_step(tmp_path: Path) -> None:
    save(build("blip", "multimodal"), tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", rows(4))
    (tmp_path / "run.yaml").write_text("model: {name_or_path: ./model}\ndata: {train: rows.jsonl, eval: null}\n")
    done = loraft("train", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "'pixel_values'" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("layout", [BatchLayout(), BatchLayout(binary_digits=2, most=99)], ids=["padded", "filled"])
@pytest.mark.parametrize("group", ["causal", "seq2seq"])
def test_c50_what_stands_behind_a_row_never_decides_its_loss(group: str, layout: BatchLayout) -> None:
    """C50: a decoder that reads a row otherwise once it is padded reads each by itself."""
    model = build("prophetnet", group)
    two_stacks = group == "seq2seq"
    spec = spec_of(model.config, "encoder_decoder" if two_stacks else "decoder")
    assert spec.alone
    made = (Seq2SeqLMLoss if two_stacks else CausalLMLoss)(model, spec)
    examples = [_example(length, two_stacks=two_stacks) for length in (9, 4, 7)]
    with torch.no_grad():
        together = made(made.collate(examples, layout))
        alone = sum(made(made.collate([example], layout)) for example in examples)
    torch.testing.assert_close(together, alone)


def _example(length: int, *, two_stacks: bool) -> Example:
    ids = list(range(5, 5 + length))
    return Example.of_pair(ids, ids[:-2], "rows") if two_stacks else Example.of_text(ids, list(ids), "rows")


CROSS = tuple(f"encoder_attn.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj"))
NOT_ON_THE_WAY = {
    "pegasus": CROSS,  # a decoder alone has nothing to attend to there
    "gemma3n_text": ("altup.correction_coefs",),  # in training its weight is read past the module
    "jamba": ("mamba.dt_proj",),  # likewise
    "deepseek_v32": tuple(f"self_attn.indexer.{name}" for name in ("wq_b", "wk", "weights_proj")),  # it only chooses
    "opt": (),
    "dbrx": (),
    "ernie4_5_vl_moe": tuple(f"mlp.vision_moe.experts.{name}" for name in ("gate_up_proj", "down_proj")),
}


def given() -> dict[str, torch.Tensor]:
    row = torch.arange(3, 17)[None]
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


@pytest.mark.parametrize("model_type", NOT_ON_THE_WAY)
def test_what_no_gradient_reaches_is_found(model_type: str) -> None:
    model = build(model_type, "multimodal" if "_vl" in model_type else "causal")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert unreached(model, by_structure(model), given()) == NOT_ON_THE_WAY[model_type]
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_adapter_leaves_it_out_and_it_cannot_be_named() -> None:
    model = build("pegasus", "causal")
    spec = spec_of(model.config, "decoder")
    assert spec.unreached == CROSS
    everywhere = targets_in(model, spec, LoraSection(), quantized=False)
    assert not any("encoder_attn" in name for name in everywhere.modules)
    by_last_part = targets_in(model, spec, LoraSection(target_modules=["k_proj"]), quantized=False)
    assert by_last_part.modules == tuple(f"model.decoder.layers.{layer}.self_attn.k_proj" for layer in (0, 1))
    with pytest.raises(AdapterError, match="nothing would be learned") as raised:
        targets_in(model, spec, LoraSection(target_modules=["encoder_attn.k_proj"]), quantized=False)
    assert [problem.key for problem in raised.value.problems] == ["lora.target_modules"]


def test_experts_that_no_text_reaches_are_left_out_and_cannot_be_named() -> None:
    model = build("ernie4_5_vl_moe", "multimodal")
    spec = spec_of(model.config, "decoder")
    for lora in (LoraSection(), LoraSection(target_parameters=["experts.gate_up_proj", "experts.down_proj"])):
        adapted = {weight.name for weight in targets_in(model, spec, lora).weights}
        assert adapted == {
            f"model.language_model.layers.1.mlp.text_moe.experts.{name}" for name in ("gate_up_proj", "down_proj")
        }
    with pytest.raises(AdapterError, match="nothing would be learned") as raised:
        targets_in(model, spec, LoraSection(target_parameters=["vision_moe.experts.down_proj"]))
    assert [problem.key for problem in raised.value.problems] == ["lora.target_parameters"]


@pytest.mark.slow
def test_a_family_of_the_table_that_is_used_otherwise_is_looked_into() -> None:
    alone = build("bart", "causal").config
    assert not alone.is_encoder_decoder
    assert spec_of(alone, "decoder").layers_path == "model.decoder.layers"
    assert spec_of(tiny_model("bart").config, "encoder_decoder").encoder_path == "model.encoder.layers"
    writer = build("bert", "causal")
    writer.config.architectures = [type(writer).__name__]
    assert spec_of(writer.config, "decoder").kind == "decoder"
