"""Adapters of encoder-decoders merged: compared on sources and targets, over the positions of the decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM

from loraft import api
from loraft.adapters.resolve_target import resolve_target
from loraft.inference.requests import ModelRequest
from loraft.inference.session import open_session
from loraft.inspection.layers_report import inspect_layers
from loraft.merging.calibration_text import built_in_rows, rows_for
from loraft.merging.equivalence import kl_divergence
from loraft.models.modules import decoder_inputs
from loraft.models.registry import TWO_STACKS
from loraft.rows.formats import Seq2SeqRecord
from loraft.tasks.training_metadata import SourceFormat
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer
from tests.adapters.setting import disturb
from tests.inference.voices import base_in, pair_adapter_in
from tests.tiny import mostly_slow, tiny_tokenizer
from tests.tokenization.test_seq2seq_rows import nllb

TYPES = tuple(TWO_STACKS)
STACKS: dict[str, Any] = {
    "both": {"encoder": "last:2", "decoder": "all"},
    "encoder": {"encoder": [0, 2]},
    "decoder": {"decoder": "last:1"},
}
PAIRS = [(f"the order {number} is late", f"late is {number} order the") for number in range(9)]


def logits(model: torch.nn.Module, ids: list[int], target: list[int]) -> torch.Tensor:
    said = decoder_inputs(model, torch.tensor([target]))
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), decoder_input_ids=said).logits[0].float()  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", mostly_slow(TYPES, "t5", "bart"))
@pytest.mark.parametrize("stack", STACKS)
def test_c27_merged_is_adapted_in_the_stacks_that_were_trained(tmp_path: Path, model_type: str, stack: str) -> None:
    """C22 too: the embeddings that encoder, decoder and head share are one tensor before and after."""
    base = base_in(tmp_path / "base", model_type)
    adapter = pair_adapter_in(tmp_path / "run/adapter", base, prefix="turn: ", layers=STACKS[stack])
    report = api.merge(str(tmp_path / "run"))
    assert report.max_abs_logit_difference is not None
    # The bound of the proof itself. T5's scores are not scaled: over these long texts the adapted and the merged model
    # are each as far from the same model in float64 (5e-4 at most, mT5) as they are from one another.
    assert report.max_abs_logit_difference <= 1e-3
    assert (report.compared, report.positions, report.warnings) == ("logits", 256, ())
    merged = AutoModelForSeq2SeqLM.from_pretrained(report.out).eval()
    adapted = open_session(ModelRequest(str(adapter)))
    target = [5, 9, 33, 8, 2]
    for model in (merged, adapted.model):
        model.double()  # so that the weights are compared, and not the order of float32 sums
    for ids in ([5, 9, 200, 17], [60, 4, 2]):
        assert (logits(merged, ids, target) - logits(adapted.model, ids, target)).abs().max() <= 1e-5
    assert resolve_target(str(report.out)).metadata.sources == SourceFormat("turn: ")
    tied = [name for name in ("shared.weight", "model.shared.weight") if name in dict(merged.named_parameters())]
    assert tied
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


@pytest.mark.slow
def test_the_figures_are_those_of_the_rows_that_were_held_out(tmp_path: Path) -> None:
    """Sources with their prefix and targets with their end, as in training; the mean over the decoder's positions."""
    base = base_in(tmp_path / "base", "t5")
    adapter = pair_adapter_in(tmp_path / "run/adapter", base, prefix="turn: ", amount=0.3)
    rows = [json.dumps({"source": source, "target": target}) for source, target in PAIRS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "run/config.yaml").write_text(
        f"task: seq2seq_lm\nmodel: {{name_or_path: {base}}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, eval: {tmp_path}/rows.jsonl, source_prefix: 'turn: '}}\n"
    )
    tokenizer = tiny_tokenizer()
    renderer = Seq2SeqRenderer(tokenizer, prefix="turn: ")
    examples = renderer.examples([renderer.render(Seq2SeqRecord(*pair)) for pair in PAIRS], [""] * len(PAIRS))
    found = rows_for(adapter, tokenizer, SourceFormat("turn: "))
    assert found.source == "the run's held-out rows"
    assert list(found.ids[: len(PAIRS)]) == [example.input_ids for example in examples]
    assert list(found.targets[: len(PAIRS)]) == [example.labels for example in examples]
    positions = sum(len(example.labels) for example in examples)
    report = api.merge(str(tmp_path / "run"), positions=positions)
    assert report.measured_on == "the run's held-out rows"
    session, plain = open_session(ModelRequest(str(adapter))), AutoModelForSeq2SeqLM.from_pretrained(base)
    apart = [
        kl_divergence(*(logits(model, example.input_ids, example.labels) for model in (session.model, plain)))
        for example in examples
    ]
    assert report.kl_adapted_base == pytest.approx(float(torch.cat(apart).mean()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bart", "marian"])
def test_a_model_of_few_positions_is_compared_on_rows_that_fit(tmp_path: Path, model_type: str) -> None:
    """The built-in texts are longer than its table of positions."""
    base = base_in(tmp_path / "base", model_type, max_position_embeddings=64)
    pair_adapter_in(tmp_path / "run/adapter", base)
    report = api.merge(str(tmp_path / "run"))
    assert (report.verified, report.positions) == (True, 256)


@pytest.mark.slow
def test_rows_are_merged_by_the_name_that_the_files_have_for_a_tied_weight(tmp_path: Path) -> None:
    """Marian's embedding is called by its encoder's name, and its files hold what is shared."""
    base = base_in(tmp_path / "base", "marian")
    lora = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 250])
    adapted = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), lora)
    disturb({name: weight for name, weight in adapted.named_parameters() if weight.requires_grad})
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    report = api.merge(str(tmp_path / "adapter"), tmp_path / "out")
    assert (report.verified, report.untied) == (True, ())
    assert report.compared_tensors > 100


def test_built_in_texts_are_read_in_the_languages_of_training(tmp_path: Path) -> None:
    tokenizer = nllb(tmp_path)
    rows = built_in_rows(tokenizer, SourceFormat("", "deu_Latn", "fra_Latn"))
    codes = tokenizer.convert_tokens_to_ids(["deu_Latn", "fra_Latn"])
    assert {(ids[0], target[0]) for ids, target in zip(rows.ids, rows.targets, strict=True)} == {tuple(codes)}
    unsaid = built_in_rows(tokenizer, SourceFormat())
    assert unsaid.targets == unsaid.ids


def test_inspect_layers_tells_both_stacks_and_what_changed_in_each(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", "bart")
    adapter = pair_adapter_in(tmp_path / "adapter", base, layers=STACKS["both"])
    told = inspect_layers(str(adapter)).as_dict()
    assert (told["encoder_layers"], told["decoder_layers"]) == (3, 2)
    assert "num_layers" not in told
    assert told["lora"]["layers"] == {"encoder": (1, 2), "decoder": (0, 1)}
    layers = {(layer["stack"], layer["index"]) for layer in told["adapters"][0]["layers"]}
    assert layers == {("encoder", 1), ("encoder", 2), ("decoder", 0), ("decoder", 1)}
    trained = {(layer["stack"], layer["index"]): sum(row["lora_parameters"] for row in layer["modules"])
               for layer in told["layers"]}  # fmt: skip
    assert trained["encoder", 0] == 0
    assert sum(trained.values()) == told["lora"]["parameters"]
