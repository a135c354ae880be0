"""Gradients by distance: on which texts, and by which derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraft.baselines.gradient_reach import (
    LONGEST_TEXT,
    MOST_DISTANCE,
    TEXTS,
    gradient_reach,
    of_recurrent,
    of_transformer,
    texts_to_measure,
)
from loraft.baselines.recurrent import Cell
from loraft.models.registry import CLASSIFIERS, DECODERS
from loraft.tasks import TASKS
from loraft.tasks.loss import CausalLMLoss, ClassificationLoss
from loraft.tokenization.examples import IGNORED, Example
from tests.baselines.test_recurrent import both_cells, classifier, writer
from tests.tiny import tiny_model


def rows(count: int = 40, length: int = 15, *, classified: bool = False) -> list[Example]:
    ids = [[3, *((number + place) % 9 for place in range(length - 1))] for number in range(count)]
    if classified:
        return [Example.of_class(each, number % 2, "") for number, each in enumerate(ids)]
    return [Example.of_text(each, [*[IGNORED] * 5, *each[5:-2], *[IGNORED] * 2], "") for each in ids]


def test_texts_are_rows_end_to_end_with_the_loss_at_their_end() -> None:
    given = rows()
    texts = texts_to_measure(given, classified=False, context=None)
    assert len(texts.examples) == TEXTS
    assert (texts.length, texts.distances) == (LONGEST_TEXT - 1, MOST_DISTANCE)
    for text in texts.examples:
        assert len(text.input_ids) == LONGEST_TEXT
        assert [place for place, label in enumerate(text.labels) if label != IGNORED] == [LONGEST_TEXT - 1]
        assert text.labels[-1] == text.input_ids[-1]
        assert text.input_ids[0] == 3, "a text begins as its row does"
    ends = [row.input_ids[:-2] for row in given]  # the last two tokens of a row are not learned
    assert all(text.input_ids[-13:] in ends for text in texts.examples)


def test_texts_are_as_long_as_rows_and_model_allow() -> None:
    few = texts_to_measure(rows(3, classified=True), classified=True, context=None)
    assert (len(few.examples), few.length, few.distances) == (1, 45, 44)
    assert few.examples[0].labels == [0]
    narrow = texts_to_measure(rows(), classified=False, context=32)
    assert (narrow.length, narrow.distances) == (31, 30)
    one = texts_to_measure([Example.of_class([1, 2], 0, "")], classified=True, context=None)
    assert one.distances < 2
    pair = Example.of_class([1, 2, 3, 4], 0, "", [0, 0, 1, 1])
    assert texts_to_measure([pair, pair], classified=True, context=None).examples[0].token_type_ids == [0] * 8


def test_what_falls_by_half_a_token_is_told_so() -> None:
    def halving(texts: Sequence[Example]) -> Tensor:
        time = len(texts[0].input_ids)
        norms = 0.5 ** torch.arange(time, dtype=torch.float64).flip(0)
        return norms[None, :, None].repeat(len(texts), 1, 1) * 7

    found = gradient_reach("it", texts_to_measure(rows(classified=True), classified=True, context=64), halving)
    assert found.factor == pytest.approx(0.5)
    assert found.relative[:3] == pytest.approx((1, 0.5, 0.25))
    assert len(found.relative) == 63
    assert found.orders == pytest.approx(62 * 0.30103, rel=1e-4)


def test_a_gradient_of_zero_is_a_number_still() -> None:
    texts = texts_to_measure(rows(classified=True), classified=True, context=16)
    found = gradient_reach("it", texts, lambda each: torch.zeros(len(each), 16, 2))
    assert found.relative == (1.0,) * 15


@both_cells
def test_the_gradient_of_a_recurrent_network_is_the_quotient_of_differences(cell: Cell) -> None:
    model = writer(cell)
    texts = texts_to_measure(rows(), classified=False, context=12)
    found = of_recurrent(model)(texts.examples[:2])
    double = model.network.double()
    embedded = model.embedded(texts.examples[:2])
    step = 1e-6
    for place in (0, 5, 10):
        moved = [embedded.clone(), embedded.clone()]
        moved[0][1, place, 2] += step
        moved[1][1, place, 2] -= step
        with torch.no_grad():
            up, down = (float(model.losses(texts.examples[:2], each)[0].sum()) for each in moved)
        assert float(found[1, place, 2]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-9)
    assert not found[:, -1].any(), "what is predicted is not read"
    assert double.head.weight.dtype == torch.float64


def test_measuring_leaves_a_network_as_it_was() -> None:
    model = classifier("lstm")
    texts = texts_to_measure(rows(classified=True), classified=True, context=32)
    gradient_reach("lstm", texts, of_recurrent(model))
    assert {each.dtype for each in model.network.parameters()} == {torch.float32}
    assert all(each.grad is None for each in model.network.parameters())


def test_the_gradient_of_a_decoder_is_that_by_its_embeddings() -> None:
    model = tiny_model("llama").requires_grad_(False)
    texts = texts_to_measure(rows(), classified=False, context=20)
    task, family = TASKS["causal_lm"], DECODERS["llama"]
    found = of_transformer(model, CausalLMLoss(model, family), task, "cpu")(texts.examples[:3])
    ids = torch.tensor([text.input_ids for text in texts.examples[:3]])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    (wanted,) = torch.autograd.grad(cross_entropy(logits[:, -2], ids[:, -1], reduction="sum"), embedded)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_an_encoder_is_that_by_its_embeddings() -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(tiny_model("bert").config).eval().requires_grad_(False)
    texts = texts_to_measure(rows(classified=True), classified=True, context=20)
    loss = ClassificationLoss(model, CLASSIFIERS["bert"])
    found = of_transformer(model, loss, TASKS["seq_cls"], "cpu")(texts.examples[:3])
    assert found.shape == (3, 20, 32)
    assert found.abs().sum(-1).min() > 0, "an encoder looks at every token"
    assert not model.get_input_embeddings()._forward_hooks
