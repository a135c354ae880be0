"""Each loss of pairs and its gradient against TRL's own code, and against its formula where TRL has none."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loraft.config.preference_section import PreferenceSection
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import FAMILIES
from loraft.tasks.batches import BatchLayout
from loraft.tasks.preference_loss import CausalLMPreferenceLoss, PreferenceLoss, pair_losses
from loraft.tokenization.examples import IGNORED, Example
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

LAYOUTS = {name: BatchLayout(packed=name == "packed", pad_id=0) for name in ("packed", "padded")}


def text(seed: int, length: int, prompt: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = [1, *torch.randint(3, 300, (length - 1,), generator=generator).tolist()]
    return Example.of_text(ids, [IGNORED] * prompt + ids[prompt:], f"row {seed}")


def pair(seed: int, chosen: int, rejected: int) -> Example:
    """Two answers behind a prompt of one token: TRL's likelihood of orpo counts those of a prompt too."""
    return Example.of_preference(text(seed, chosen, 1), text(seed + 1, rejected, 1))


PAIRS = [pair(1, 9, 14), pair(3, 20, 5), pair(5, 7, 7)]


def of(before: Any = None, **asked: Any) -> PreferenceLoss:
    loss = CausalLMPreferenceLoss(tiny_model("llama"), FAMILIES["llama"])
    loss.asked = PreferenceSection.model_validate(asked)
    loss.before = before
    return loss


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def trl_batch(example: Example) -> dict[str, Tensor]:
    """A pair as TRL lays it: both texts padded on the right, the better one first."""
    texts = example.texts
    longest = max(len(each.input_ids) for each in texts)

    def padded(rows: list[list[int]], filling: int) -> Tensor:
        return torch.tensor([row + [filling] * (longest - len(row)) for row in rows])

    ids = padded([each.input_ids for each in texts], 0)
    labels = padded([[IGNORED, *each.labels[1:]] for each in texts], IGNORED)
    mask = padded([[1] * len(each.input_ids) for each in texts], 0)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def trl_cpo(loss: PreferenceLoss, example: Example) -> Tensor:
    """What TRL's CPO trainer computes of a pair: its own functions, on the logits of the same model."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    asked = loss.asked
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), alpha=0.0, beta=asked.strength,
        label_smoothing=asked.label_smoothing, simpo_gamma=asked.gamma,
        loss_type="simpo" if asked.loss == "simpo" else "sigmoid",
    )  # fmt: skip
    batch = trl_batch(example)
    logits = loss.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    likely = CPOTrainer.get_batch_logps(logits, batch["labels"], average_log_prob=asked.loss == "simpo")
    losses, _, _ = CPOTrainer.cpo_loss(trainer, likely[:1], likely[1:])
    of_tokens = torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], ignore_index=IGNORED)
    return losses.sum() + asked.sft_share * of_tokens


def trl_orpo(loss: PreferenceLoss, example: Example) -> Tensor:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=loss.asked.strength)
    batch = trl_batch(example)
    logits = loss.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    likely = ORPOTrainer.get_batch_logps(logits, batch["labels"], average_log_prob=True)
    losses = ORPOTrainer.odds_ratio_loss(trainer, likely[:1], likely[1:])[0]
    labels = batch["input_ids"][0, 1:].where(batch["attention_mask"][0, 1:] != 0, IGNORED)
    return torch.nn.functional.cross_entropy(logits[0, :-1], labels, ignore_index=IGNORED) - losses.mean()


def trl_dpo(loss: PreferenceLoss, example: Example, before: Tensor) -> Tensor:
    """What TRL's DPO trainer computes of a pair whose reference is known; only the likelihood of tokens is ours."""
    from trl.trainer.dpo_trainer import DPOTrainer

    def model(*, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        logits = loss.model(input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        likely = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
        answers = batch["completion_mask"][:, 1:]
        nothing = torch.zeros_like(likely)
        return SimpleNamespace(log_probs=likely * answers, mean_logits=nothing, is_top1=nothing.bool(), entropy=nothing)

    laid = trl_batch(example)
    batch = {
        "input_ids": laid["input_ids"],
        "attention_mask": laid["attention_mask"],
        "completion_mask": (laid["labels"] != IGNORED).long(),
        "ref_chosen_logps": before[:1],
        "ref_rejected_logps": before[1:],
    }
    alone = SimpleNamespace(device="cpu", gather=lambda it: it, gather_for_metrics=lambda it: it)
    trainer = SimpleNamespace(
        model=loss.model, accelerator=alone, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=["ipo" if loss.asked.loss == "ipo" else "sigmoid"],
        loss_weights=[1.0], beta=loss.asked.strength, label_smoothing=0.0, use_weighting=False,
        _total_train_tokens=0, state=SimpleNamespace(num_input_tokens_seen=0),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    found: Tensor = DPOTrainer._compute_loss(trainer, model, batch, return_outputs=False)
    return found


@pytest.mark.parametrize(
    ("asked", "theirs"),
    [
        ({"loss": "cpo"}, trl_cpo),
        ({"loss": "cpo", "beta": 0.3, "label_smoothing": 0.1, "sft_weight": 0.5}, trl_cpo),
        ({"loss": "simpo"}, trl_cpo),
        ({"loss": "simpo", "gamma": 1.2, "sft_weight": 0.7, "label_smoothing": 0.2}, trl_cpo),
        ({"loss": "orpo"}, trl_orpo),
    ],
    ids=["cpo", "cpo with all", "simpo", "simpo with all", "orpo"],
)
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_loss_without_reference_and_its_gradient_are_trls(asked: dict[str, Any], theirs: Any, layout: Any) -> None:
    pytest.importorskip("trl")
    ours = of(**asked).train()
    expected = sum((theirs(ours, each) for each in PAIRS), torch.zeros(()))
    expected.backward()
    wanted = gradients(ours.model)
    if layout.packed:
        ours.model.set_attn_implementation(ROWS)
    found = ours(ours.collate(PAIRS, layout))
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(ours.model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_a_loss_with_a_reference_and_its_gradient_are_trls(loss: str) -> None:
    pytest.importorskip("trl")
    ours, other = of(loss=loss, beta=0.2), of(loss=loss)
    for parameter in other.model.parameters():
        parameter.data += 0.02
    references = [other.likelihoods(other.collate([each], LAYOUTS["padded"])).detach()[0] for each in PAIRS]
    known = [
        replace(each, reference=(float(before[0]), float(before[1])))
        for each, before in zip(PAIRS, references, strict=True)
    ]
    found = ours(ours.collate(known, LAYOUTS["padded"]))
    found.backward()
    gradient = gradients(ours.model)
    expected = sum((trl_dpo(ours, *each) for each in zip(PAIRS, references, strict=True)), torch.zeros(()))
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, wanted in gradients(ours.model).items():
        torch.testing.assert_close(gradient[name], wanted, rtol=1e-5, atol=1e-5, msg=name)


def test_the_difference_of_odds_is_finite_and_has_a_gradient_where_an_answer_is_certain() -> None:
    likely = torch.tensor([[0.0, -1e-9], [-1e-30, -400.0]], requires_grad=True)
    losses, _ = pair_losses(likely, torch.ones(2, 2), None, PreferenceSection(loss="orpo"))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert likely.grad is not None
    assert likely.grad.isfinite().all()


def test_smoothing_takes_a_share_of_pairs_the_other_way_and_an_evaluation_takes_them_as_they_stand() -> None:
    likely, before = torch.tensor([[-3.0, -5.0]]), torch.tensor([[-4.0, -4.5]])
    asked = PreferenceSection(label_smoothing=0.1)
    (smooth,), rewards = pair_losses(likely, torch.ones(1, 2), before, asked, 0.1)
    wanted = 0.1 * ((-3 + 4) - (-5 + 4.5))
    torch.testing.assert_close(rewards, torch.tensor([[0.1, -0.05]]))
    expected = -0.9 * math.log(1 / (1 + math.exp(-wanted))) - 0.1 * math.log(1 / (1 + math.exp(wanted)))
    assert smooth.item() == pytest.approx(expected, abs=1e-6)
    loss = of(loss="cpo", label_smoothing=0.2)
    batch = loss.collate(PAIRS, LAYOUTS["padded"])
    plain = of(loss="cpo")(batch)
    assert loss.train()(batch).item() != pytest.approx(plain.item(), abs=1e-4)
    assert loss.eval()(batch).item() == pytest.approx(plain.item(), abs=1e-5)


def test_figures_are_of_pairs_in_the_right_order() -> None:
    figures = PreferenceLoss.figures(torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 1.0]]))
    assert figures == {"accuracy": 2.5 / 4, "margin": 0.25, "chosen_reward": 1.0, "rejected_reward": 0.75}
