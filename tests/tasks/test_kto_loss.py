"""The loss of answers that stand alone and its gradient, against TRL's own trainer; what a step is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraft.config.preference_section import PreferenceSection
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import FAMILIES
from loraft.tasks.batches import BatchLayout
from loraft.tasks.kto_loss import CausalLMKTOLoss, KTOLoss, kto_losses
from loraft.tokenization.examples import IGNORED, Example, with_mismatched
from tests.tiny import tiny_model

MOST = 20
"""The longest prompt does not fit before the whole answer of the row before it."""


def answer(seed: int, length: int, prompt: int, *, desirable: bool) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = [1, *torch.randint(3, 300, (length - 1,), generator=generator).tolist()]
    text = Example.of_text(ids, [IGNORED] * prompt + ids[prompt:], f"row {seed}")
    return replace(text, desirable=desirable)


ROWS_IN_A_STEP = [
    answer(1, 9, 3, desirable=True),
    answer(2, 14, 10, desirable=False),
    answer(3, 20, 4, desirable=True),
    answer(4, 17, 12, desirable=False),
    answer(5, 7, 2, desirable=True),
]


def of(shift: float = 0.0, **asked: Any) -> KTOLoss:
    """The loss over a tiny model, whose reference has `shift` more in every weight."""
    loss = CausalLMKTOLoss(tiny_model("llama"), FAMILIES["llama"])

    @contextmanager
    def before() -> Iterator[None]:
        began = {name: each.detach().clone() for name, each in loss.model.named_parameters()}
        for each in loss.model.parameters():
            each.data += shift
        yield
        for name, each in loss.model.named_parameters():
            each.data.copy_(began[name])

    loss.asked, loss.before = PreferenceSection(loss="kto", **asked), before
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def step(loss: KTOLoss, rows: list[Example], size: int, layout: BatchLayout) -> Tensor:
    """The mean loss of the rows of a step, `size` to a batch; its gradient is in the model."""
    crossed = with_mismatched(rows, MOST)
    batches = [loss.collate(crossed[at : at + size], layout) for at in range(0, len(rows), size)]
    loss.kl = sum((loss.summed_kl(batch) for batch in batches), torch.zeros(())) / len(rows)
    losses = [loss(batch) / len(rows) for batch in batches]
    for each in losses:
        each.backward()
    assert sum(loss.weight(batch) for batch in batches) == len(rows)
    return torch.stack(losses).sum().detach()


def trl_step(loss: KTOLoss, rows: list[Example], asked: PreferenceSection) -> Tensor:
    """What TRL's trainer computes of a batch; only the likelihoods of tokens and of the reference are given to it."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    def model(*, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        logits = loss.model(input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        likely = logits.log_softmax(-1).gather(2, labels[:, 1:, None].clamp(min=0)).squeeze(2)
        nothing = torch.zeros_like(likely)
        likely = likely.where(labels[:, 1:] != IGNORED, nothing)
        return SimpleNamespace(log_probs=likely, entropy=nothing, mean_logits=nothing)

    borders = [next(at for at, label in enumerate(row.labels) if label != IGNORED) for row in rows]
    given = [
        {"prompt_ids": row.input_ids[:at], "completion_ids": row.input_ids[at:], "label": row.desirable}
        for row, at in zip(rows, borders, strict=True)
    ]
    answers: list[Any] = [each["completion_ids"] for each in given]
    crossed = [
        {**each, "KL_completion_ids": other} for each, other in zip(given, [answers[-1], *answers], strict=False)
    ]
    batch = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=MOST)(crossed)
    alone = SimpleNamespace(
        device="cpu", gather_for_metrics=lambda it: it, autocast=torch.no_grad, unwrap_model=lambda it: it
    )
    trainer = object.__new__(KTOTrainer)
    trainer.__dict__.update(
        model=loss.model, ref_model=None, accelerator=alone, calculate_KL=True, precompute_ref_logps=True,
        aux_loss_enabled=False, loss_type="kto", beta=asked.strength, desirable_weight=asked.desirable_weight,
        undesirable_weight=asked.undesirable_weight, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    assert loss.before is not None
    with torch.no_grad(), loss.before():
        for prefix, name in (("", "ref_logps"), ("KL_", "ref_KL_logps")):
            ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
            labels = ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, IGNORED)
            batch[name] = model(input_ids=ids, attention_mask=mask, labels=labels).log_probs.sum(-1)
    found: Tensor = trainer._compute_loss(model, batch, return_outputs=False)
    found.backward()
    return found.detach()


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.02, -0.01], ids=["away from its reference", "nearer than none"])
def test_the_loss_and_its_gradient_are_trls_in_any_layout_and_any_batches(shift: float) -> None:
    pytest.importorskip("trl")
    ours = of(shift, beta=0.3, desirable_weight=1.4, undesirable_weight=0.8).train()
    expected = trl_step(ours, ROWS_IN_A_STEP, ours.asked)
    wanted = gradients(ours.model)
    for packed, size in ((False, 5), (False, 2), (True, 5), (True, 1)):
        ours.model.set_attn_implementation(ROWS if packed else "sdpa")
        found = step(ours, ROWS_IN_A_STEP, size, BatchLayout(packed=packed, pad_id=0))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(ours.model).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=name)
    assert (ours.kl > 1) == (shift > 0)  # one is compared with, the other is below 0 and counts as that


def test_a_loss_is_half_its_weight_at_the_reference_point_and_falls_the_right_way() -> None:
    asked = PreferenceSection(loss="kto", beta=0.5, desirable_weight=3, undesirable_weight=2)
    likely, reference = torch.tensor([-4.0, -4.0, -3.0, -3.0]), torch.tensor([-6.0, -6.0, -6.0, -6.0])
    losses, rewards = kto_losses(likely, reference, torch.tensor([True, False] * 2), torch.tensor(2.0), asked)
    further = 1 / (1 + math.exp(-0.5))
    torch.testing.assert_close(losses, torch.tensor([1.5, 1.0, 3 * (1 - further), 2 * further]))
    torch.testing.assert_close(rewards, torch.tensor([1.0, 1.0, 1.5, 1.5]))


def test_the_likelihood_of_desirable_answers_can_count_beside_and_that_of_others_does_not() -> None:
    layout = BatchLayout(packed=False, pad_id=0)
    rows = [replace(row, reference=(-9.0,)) for row in ROWS_IN_A_STEP[:2]]
    plain, beside = of(), of(sft_weight=0.5)
    batch = plain.collate(rows, layout)
    with torch.no_grad():
        mean = plain.likelihoods(batch)[0, 0] / rows[0].trained
        torch.testing.assert_close(beside(batch), plain(batch) - 0.5 * mean)


def test_answers_are_crossed_by_their_tokens_and_one_by_itself_is_compared_with_nothing() -> None:
    first, second, third = with_mismatched(ROWS_IN_A_STEP[:3], MOST)
    assert first.mismatched is not None
    assert second.mismatched is not None
    assert third.mismatched is not None
    assert first.mismatched.input_ids == first.input_ids[:3] + third.input_ids[4:]
    assert first.mismatched.labels == [IGNORED] * 3 + third.input_ids[4:]
    assert second.mismatched.input_ids == second.input_ids[:10] + first.input_ids[3:]
    assert (third.mismatched.trained, third.mismatched.where) == (4, "row 3")
    (alone,) = with_mismatched(ROWS_IN_A_STEP[:1], MOST)
    assert alone.mismatched is None
    loss = of(0.1)
    assert loss.summed_kl(loss.collate([alone], BatchLayout(packed=False, pad_id=0))).item() == 0
    cut = with_mismatched(ROWS_IN_A_STEP, MOST)[3].mismatched
    assert cut is not None
    assert (cut.trained, len(cut.input_ids)) == (MOST - 12, MOST)


def test_figures_tell_both_kinds_apart_and_leave_out_the_one_that_is_not_there() -> None:
    decisions = torch.tensor([[1.0, 0.5, -1.0], [1.0, 1.0, 0.0], [0.25, 0.25, 0.25]])
    figures = KTOLoss.figures(decisions)
    assert figures == {"margin": 1.75, "desirable_reward": 0.75, "undesirable_reward": -1.0, "kl": 0.25}
    assert KTOLoss.figures(decisions[:, :2]) == {"desirable_reward": 0.75, "kl": 0.25}
