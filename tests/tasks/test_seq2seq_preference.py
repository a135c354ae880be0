"""Preferences of encoder-decoders: their rows, and losses and gradients against TRL's own functions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loraft.config.preference_section import PreferenceSection
from loraft.dataset.statistics import contradictions
from loraft.errors import DataError
from loraft.models.registry import FAMILIES
from loraft.rows.formats import NO_LANGUAGES, PreferencePair, Seq2SeqRecord, UnpairedAnswer
from loraft.rows.row import Row
from loraft.tasks import TASKS
from loraft.tasks.batches import BatchLayout
from loraft.tasks.kto_loss import Seq2SeqKTOLoss, kto_losses
from loraft.tasks.preference_loss import PreferenceLoss, Seq2SeqPreferenceLoss, pair_losses
from loraft.tasks.task import Reference
from loraft.tokenization.examples import IGNORED, Example, with_mismatched
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

TASK = TASKS["seq2seq_preference"]
PADDED = BatchLayout(packed=False, pad_id=0)


def answer(seed: int, source: int, target: int) -> Example:
    """A source, the same for each `seed`, and a target of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (source,), generator=generator).tolist()
    return Example.of_pair(ids, torch.randint(3, 300, (target,), generator=generator).tolist(), f"row {seed}")


def pair(seed: int, source: int, chosen: int, rejected: int) -> Example:
    return Example.of_preference(answer(seed, source, chosen), answer(seed, source, rejected))


PAIRS = [pair(1, 9, 14, 3), pair(3, 20, 5, 6), pair(5, 7, 7, 11)]


def of(kind: type[PreferenceLoss], model_type: str, **asked: Any) -> PreferenceLoss:
    loss = kind(tiny_model(model_type), FAMILIES[model_type])
    loss.asked = PreferenceSection.model_validate(asked)
    return loss


def read_by(model: Any, text: Example) -> tuple[Tensor, Tensor]:
    """`[1, target, vocab]` and `[1, target]`: transformers' own logits of a target, and its tokens."""
    source, target = torch.tensor([text.input_ids]), torch.tensor([text.labels])
    return model(input_ids=source, labels=target, use_cache=False).logits, target


def likelihood(model: Any, text: Example) -> Tensor:
    logits, target = read_by(model, text)
    return logits.log_softmax(-1).gather(2, target[..., None]).sum()


def trls(loss: PreferenceLoss, example: Example) -> Tensor:
    """What TRL's trainers compute of a pair, on transformers' logits."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    asked, on_average = loss.asked, loss.asked.loss in ("simpo", "orpo")
    read = [read_by(loss.model, text) for text in example.texts]
    chosen, rejected = (
        CPOTrainer.get_batch_logps(logits, target.clone(), average_log_prob=on_average, is_encoder_decoder=True)
        for logits, target in read
    )
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), alpha=0.0, beta=asked.strength, label_smoothing=0.0,
        simpo_gamma=asked.gamma, loss_type="simpo" if asked.loss == "simpo" else "sigmoid",
    )  # fmt: skip
    if asked.loss == "orpo":
        found = -ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0].mean()
    else:
        found = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].sum()
    return found + asked.sft_share * torch.nn.functional.cross_entropy(read[0][0][0], read[0][1][0])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart"])
@pytest.mark.parametrize("loss", ["cpo", "simpo", "orpo"])
def test_a_loss_and_its_gradient_are_trls(loss: str, model_type: str) -> None:
    pytest.importorskip("trl")
    ours = of(Seq2SeqPreferenceLoss, model_type, loss=loss).double()
    expected = sum((trls(ours, each) for each in PAIRS), torch.zeros(()))
    expected.backward()
    wanted = {name: each.grad for name, each in ours.model.named_parameters() if each.grad is not None}
    ours.model.zero_grad(set_to_none=True)
    found = ours(TASK.collate(PAIRS, PADDED))
    found.backward()
    # The model computes in float64, the loss in float32: sums in another order do not reach the fifth digit.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    for name, each in ours.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(each.grad, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_pair_is_compared_with_its_reference_by_all_tokens_of_both_targets() -> None:
    """1e-5 for the order of sums in float32."""
    loss = of(Seq2SeqPreferenceLoss, "t5", beta=0.3)
    known = [replace(each, reference=(-3.0, -4.5)) for each in PAIRS]
    with torch.no_grad():
        likely = torch.stack([torch.stack([likelihood(loss.model, text) for text in each.texts]) for each in PAIRS])
        losses, rewards = loss.of_pairs(TASK.collate(known, PADDED))
    before = torch.tensor([[-3.0, -4.5]] * 3)
    expected = pair_losses(likely, torch.ones(3, 2), before, loss.asked)
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rewards, expected[1], rtol=1e-5, atol=1e-5)


def test_single_targets_are_compared_with_those_of_other_sources() -> None:
    rows = [replace(answer(seed, 4 + seed, 9 - seed), desirable=seed != 2) for seed in (1, 2, 3)]
    crossed = with_mismatched(rows, most=2)
    mismatched = [each.mismatched for each in crossed if each.mismatched is not None]
    assert [each.input_ids for each in mismatched] == [each.input_ids for each in rows]
    assert [each.labels for each in mismatched] == [rows[2].labels, rows[0].labels, rows[1].labels]
    loss = of(Seq2SeqKTOLoss, "t5", loss="kto", beta=0.2)
    assert isinstance(loss, Seq2SeqKTOLoss)
    loss.before = nullcontext
    batch = TASK.collate([replace(each, reference=(-40.0,)) for each in crossed], PADDED)
    assert loss.summed_kl(batch).item() == 0  # the model is its own reference
    loss.kl = torch.tensor(1.5)
    with torch.no_grad():
        likely = torch.stack([likelihood(loss.model, each) for each in rows])
        expected, _ = kto_losses(
            likely, torch.full((3,), -40.0), torch.tensor([True, False, True]), torch.tensor(1.5), loss.asked
        )
        torch.testing.assert_close(loss(batch), expected.sum(), rtol=1e-5, atol=1e-5)


def test_a_pair_of_targets_is_two_rows_with_the_same_source_and_is_cut_in_each() -> None:
    (example,) = PAIRS[:1]
    chosen, rejected = example.texts
    assert chosen.input_ids == rejected.input_ids
    assert (len(chosen.input_ids), len(chosen.labels), len(rejected.labels)) == (9, 14, 3)
    assert (example.longest, example.longest_target, example.tokens, example.trained) == (9, 14, 35, 17)
    assert list(TASK.read_by("encoder", example)) == [9, 9]
    assert list(TASK.read_by("decoder", example)) == [14, 3]
    assert [(span.name, len(span.ids), any(span.trained)) for span in TASK.spans(example)] == [
        ("source", 9, False), ("chosen", 14, True), ("rejected", 3, True),
    ]  # fmt: skip
    short = example.cut(5)
    assert [(len(text.input_ids), len(text.labels)) for text in short.texts] == [(5, 5), (5, 3)]
    assert short.cut(5) is short
    batch = TASK.collate([example], PADDED)
    assert batch.input_ids.shape == (2, 9)
    assert (batch.labels != IGNORED).sum(1).tolist() == [14, 3]
    assert (batch.text_targets, batch.tokens) == ((14, 3), 35)
    single = replace(answer(1, 9, 14), desirable=False).cut(6)
    assert (len(single.input_ids), len(single.labels), single.desirable) == (6, 6, False)


def record(**values: object) -> Any:
    fmt = "unpaired" if "label" in values else "preferences"
    return TASK.record(Row(values, "rows.jsonl:3"), fmt, {}, NO_LANGUAGES)


SAID: Mapping[str, Any] = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))


def test_a_row_is_a_source_with_targets_be_it_text_or_one_turn_and_its_answer() -> None:
    wanted = PreferencePair(Seq2SeqRecord("q", "good"), Seq2SeqRecord("q", "bad"))
    assert record(prompt="q", chosen="good", rejected="bad") == wanted
    good, bad = [GOOD], [BAD]
    assert record(prompt=[SAID], chosen=good, rejected=bad) == wanted
    assert record(messages=[SAID, *good], rejected_response="bad") == wanted
    assert record(prompt="q", completion="good", label=True) == UnpairedAnswer(Seq2SeqRecord("q", "good"), True)


@pytest.mark.parametrize(
    "before",
    [[{"role": "system", "content": "s"}], [SAID, {"role": "assistant", "content": "a"}]],
    ids=["a system prompt", "several turns"],
)
def test_a_conversation_is_refused_with_its_place(before: list[Any]) -> None:
    with pytest.raises(DataError, match="an encoder-decoder answers one text with one text") as caught:
        record(prompt=[*before, SAID], chosen=[GOOD], rejected=[BAD])
    assert caught.value.problems[0].where == "rows.jsonl:3"


@pytest.mark.parametrize(
    ("values", "key", "named"),
    [
        (
            {"chosen": [SAID, GOOD], "rejected": [{"role": "user", "content": "r"}, BAD]},
            "chosen[0]",
            "both answers follow the same prompt",
        ),
        ({"source": "q", "chosen": "so good", "rejected": "so bad"}, "prompt", "no source to read"),
        ({"prompt": "q", "system": "s", "chosen": "good", "rejected": "bad"}, "system", "are text"),
        ({"prompt": "q", "chosen": [{**GOOD, "thinking": "t"}], "rejected": [BAD]}, None, "and thinking"),
    ],
    ids=["two sources", "no source", "a system prompt beside text", "what was thought"],
)
def test_a_row_that_is_no_source_with_targets_is_refused(values: dict[str, Any], key: str | None, named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        record(**values)
    assert (caught.value.problems[0].where, caught.value.problems[0].key) == ("rows.jsonl:3", key)


def test_what_is_asked_is_the_source_once_and_sources_alike_with_other_targets_contradict_nothing() -> None:
    (example,) = PAIRS[:1]
    assert list(TASK.prompt_ids(example, Reference("q", "good"), SimpleNamespace())) == example.texts[0].input_ids  # type: ignore[arg-type]
    rows = [replace(answer(1, 5, length), where=f"row {length}", desirable=length > 3) for length in (3, 4, 5)]
    assert contradictions(rows, TASK) == []
    again = replace(rows[0], where="again", desirable=True)
    assert [(each.row, each.same_as) for each in contradictions([*rows, again], TASK)] == [("again", "row 3")]
