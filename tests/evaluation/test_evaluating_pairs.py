"""`api.evaluate` on encoder-decoders: the loss is transformers' own, whatever the batch, and answers are generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from loraft import api
from loraft.errors import DataError
from loraft.evaluation.evaluator import Evaluation
from loraft.inference.requests import GenerationRequest, ModelRequest
from tests.inference.test_pair_voices import multilingual_base, of_peft
from tests.inference.voices import pair_adapter_in
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.building import pairs, write_rows

SHORT = GenerationRequest(temperature=0, num_beams=1, max_new_tokens=6)
PREFIX = "turn: "


@pytest.fixture(scope="module", params=["t5", "bart"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter with a prefix that lies in no run, and rows."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(folder / "base", request.param)
    pair_adapter_in(folder / "a", folder / "base", prefix=PREFIX, languages=("en", "xx"))
    rows = [{"source": each["source"], "target": each["target"]} for each in pairs(11)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "turned.jsonl", [{"translation": {"xx": row["target"], "en": row["source"]}} for row in rows])
    return folder


def evaluated(place: Path, target: str = "a", **arguments: Any) -> Evaluation:
    choice = ModelRequest(str(place / target), dtype="float32")
    return api.evaluate(choice, **{"data": place / "rows.jsonl", "metrics": ["loss"], "options": SHORT} | arguments)


def reference_loss(place: Path) -> tuple[float, int]:
    """Summed losses of transformers' own forward, row by row, of peft's own loading.

    The source stands after the adapter's prefix, and the target before the end of text, which this tokenizer adds to
    nothing by itself.
    """
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(place / "base"), str(place / "a")).eval()
    tokenizer = tiny_tokenizer()
    total, tokens = 0.0, 0
    for row in map(json.loads, (place / "rows.jsonl").read_text().splitlines()):
        source = tokenizer(PREFIX + row["source"])["input_ids"]
        target = [*tokenizer(row["target"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss
        total += loss.double().item() * len(target)
        tokens += len(target)
    return total / tokens, tokens


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_c38_the_loss_is_that_of_transformers_for_every_batch_size(place: Path, batch_size: int) -> None:
    """C38: total negative log-likelihood / tokens of the targets. 1e-6: float32 sums in another order."""
    found = evaluated(place, batch_size=batch_size)
    loss, tokens = reference_loss(place)
    assert found.measured.loss == pytest.approx(loss, rel=1e-6)
    assert (found.task, found.tokens, found.rows, found.references) == ("seq2seq_lm", tokens, 11, 11)


@pytest.mark.slow
def test_answers_are_those_of_generate_and_measured_as_translations(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    found = evaluated(place, metrics=None, output=output, limit=4, baseline=True)
    assert list(found.measured.metrics) == ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"]
    assert found.differences.keys() == found.measured.figures.keys()
    for line in map(json.loads, output.read_text().splitlines()):
        for target, said in (("a", line), ("base", line["baseline"])):
            choice = ModelRequest(str(place / target), dtype="float32")
            # The base beside its adapter is asked as its adapter is, by itself as nobody trained it.
            prompt = line["input"] if target == "a" else PREFIX + line["input"]
            assert said["prediction"] == api.generate(choice, prompt=prompt, options=SHORT).completion.completion


@pytest.mark.slow
def test_languages_are_those_of_the_adapter_and_may_be_said(place: Path) -> None:
    plain, turned = evaluated(place), evaluated(place, data=place / "turned.jsonl")
    assert plain.measured.loss == turned.measured.loss
    choice = ModelRequest(str(place / "a"), dtype="float32", source_lang="xx", target_lang="en")
    back = api.evaluate(choice, data=place / "turned.jsonl", metrics=["loss"])
    assert back.measured.loss != plain.measured.loss
    with pytest.raises(DataError, match=r"turned.jsonl:1 translation: has no text in fr .*it has en, xx"):
        api.evaluate(ModelRequest(str(place / "a"), source_lang="fr"), data=place / "turned.jsonl", metrics=["loss"])


def test_a_base_that_nobody_trained_must_be_told_the_languages(place: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source_lang: is not set, and the rows have the languages en, xx"):
        evaluated(place, "base", data=place / "turned.jsonl")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own use of it
@pytest.mark.parametrize(("kind", "seed"), [("nllb", 6), ("mbart25", 1), ("m2m", 6)])
def test_what_knows_languages_is_asked_and_read_in_those_of_the_rows(tmp_path: Path, kind: str, seed: int) -> None:
    """Answers begin as transformers' do, in the target's language, and targets are tokens as its tokenizer makes them.

    Each is seeded so that it says words, which are others where its first token is free or its start token another.
    C38: its loss is total negative log-likelihood / tokens. 1e-6: float32 sums in another order.
    """
    base, source, target = multilingual_base(tmp_path / "base", kind)
    adapter = pair_adapter_in(tmp_path / "a", base, languages=(source, target), seed=seed, amount=1.0)
    texts = [("hello", "the cat"), ("the cat", "hello"), ("cat hello", "hello the cat")]
    write_rows(tmp_path / "rows.jsonl", [{"translation": {source: one, target: other}} for one, other in texts])
    options, output = GenerationRequest(temperature=0, num_beams=1, max_new_tokens=12), tmp_path / "o.jsonl"
    found = evaluated(tmp_path, metrics=["exact_match"], options=options, output=output, batch_size=2)
    tokenizer: Any = AutoTokenizer.from_pretrained(adapter)
    said = of_peft(base, adapter, tuple(one for one, _ in texts))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    spoken = [tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    assert [line["prediction"] for line in lines] == spoken
    assert any(spoken), "of no words at all it would not show how they begin"
    tokenizer.src_lang, tokenizer.tgt_lang = source, target
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(adapter)).eval()
    total, tokens = 0.0, 0
    for one, other in texts:
        batch = tokenizer(one, text_target=other, return_tensors="pt")
        with torch.no_grad():
            total += model(**batch).loss.double().item() * batch["labels"].numel()
        tokens += batch["labels"].numel()
    assert (found.tokens, found.measured.loss) == (tokens, pytest.approx(total / tokens, rel=1e-6))
    choice = ModelRequest(str(base), dtype="float32", source_lang=source, target_lang=target)
    alone = api.evaluate(choice, data=tmp_path / "rows.jsonl", metrics=["loss"])
    assert alone.tokens == tokens
    assert alone.measured.loss != found.measured.loss
