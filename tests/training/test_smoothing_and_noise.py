"""Smoothed labels and noise on embeddings: in training alone, and by the formulas of torch and of NEFTune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.integrations.neftune import neftune_post_forward_hook

from loraft import api
from loraft.events import Event
from loraft.tasks.batches import Batch
from loraft.tasks.loss import ClassificationLoss
from loraft.tokenization.examples import IGNORED
from loraft.training.embedding_noise import embeddings_of, noise_bounds, noisy_embeddings
from loraft.training.loop import fit
from loraft.training.run_events import StepDone, StepLogged
from loraft.training.train_step import Trainer, evaluate_loss
from tests.tiny import mostly_slow
from tests.training.building import tiny_config, tiny_fit, without_dropout

TASKS = ("causal_lm", "seq2seq_lm", "seq_cls")
ALPHA = 5.0


def logits_and_targets(run: Trainer, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the model itself says of each target, and the targets."""
    model, labels = run.adapted.loaded.model, batch.labels
    if isinstance(run.loss, ClassificationLoss):
        return run.loss.logits(batch), labels
    if batch.attention_mask is None:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        return logits.flatten(0, 1)[batch.target_positions], labels  # type: ignore[index]
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).logits
    return logits[labels != IGNORED], labels[labels != IGNORED]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", mostly_slow(["lora", "full"], "lora"))
@pytest.mark.parametrize("task", TASKS)
def test_labels_are_smoothed_as_torch_does_and_in_training_alone(tmp_path: Path, task: str, method: str) -> None:
    """To 1e-6 in float32, with a head that is frozen and with one that is trained; classes may weigh otherwise."""
    weights = {"late": 1.0, "order": 2.0, "text": 0.5} if task == "seq_cls" else None
    config = tiny_config(
        tmp_path, task=task, method=method, data__packing="off", training__label_smoothing_factor=0.1,
        training__class_weights=weights,
    )  # fmt: skip
    run, _ = tiny_fit(config)
    without_dropout(run.adapted.model)
    batch = run.batch(run.plan.data.train)
    tensor = None if weights is None else torch.tensor([weights[name] for name in run.plan.data.renderer.labels])
    with torch.no_grad():
        for training, smoothing in ((True, 0.1), (False, 0.0)):
            run.adapted.model.train(training)
            expected = cross_entropy(*logits_and_targets(run, batch), weight=tensor, label_smoothing=smoothing)
            ours = run.loss(batch) / run.loss.weight(batch)
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    found = evaluate_loss(run, run.plan.data.train, 4)
    assert found is not None
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_the_logged_loss_is_the_smoothed_one(tmp_path: Path) -> None:
    logged = {}
    for smoothing in (0.0, 0.3):
        events: list[Event] = []
        fit(*tiny_fit(_one_step(tmp_path, training__label_smoothing_factor=smoothing), events.append))
        (logged[smoothing],) = [event.loss for event in events if isinstance(event, StepLogged)]
    assert logged[0.3] != pytest.approx(logged[0.0], rel=1e-3)


def _one_step(folder: Path, **options: Any) -> Any:
    return tiny_config(folder, training__max_steps=1, training__per_device_train_batch_size=12, **options)


def test_the_noise_of_one_row_is_that_of_transformers() -> None:
    """The same draws give the same noise as the hook of transformers, on a row alone and without padding."""
    embedding = nn.Embedding(20, 32)
    embedding.neftune_noise_alpha = ALPHA  # type: ignore[assignment]
    ids = torch.arange(9)[None]
    embedded = embedding(ids)
    torch.manual_seed(3)
    theirs = neftune_post_forward_hook(embedding, (ids,), embedded) - embedded
    torch.manual_seed(3)
    ours = (torch.rand(embedded.shape) * 2 - 1) * noise_bounds(ALPHA, [9], embedded.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_row_has_the_noise_of_its_own_length_packed_or_padded() -> None:
    of = [ALPHA / (length * 8) ** 0.5 for length in (2, 3)]
    packed = noise_bounds(ALPHA, [2, 3], (1, 7, 8))
    torch.testing.assert_close(packed[0, :, 0], torch.tensor([of[0]] * 2 + [of[1]] * 3 + [0.0] * 2))
    padded = noise_bounds(ALPHA, [2, 3], (2, 3, 8))
    torch.testing.assert_close(padded[:, :, 0], torch.tensor([[of[0], of[0], 0.0], [of[1]] * 3]))


LAYOUTS = [("causal_lm", "auto"), ("causal_lm", "off"), ("seq2seq_lm", "auto"), ("seq_cls", "auto")]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(("task", "packing"), LAYOUTS)
def test_noise_is_on_what_is_trained_and_on_no_padding(tmp_path: Path, task: str, packing: str) -> None:
    config = tiny_config(tmp_path, task=task, data__packing=packing, training__neftune_noise_alpha=ALPHA)
    run, _ = tiny_fit(config)
    without_dropout(run.adapted.model)
    run.adapted.model.train()
    rows = run.plan.data.train[:4]
    found: dict[bool, dict[str, Tensor]] = {}
    for noisy in (False, True):
        found[noisy] = read = {}
        hooks = []
        with torch.no_grad(), noisy_embeddings(run.plan, run.adapted, rows if noisy else ()):
            for stack, embedding in embeddings_of(run.adapted).items():
                keep = lambda _m, _i, out, read=read, stack=stack: read.setdefault(stack, out)  # noqa: E731
                hooks.append(embedding.register_forward_hook(keep))
            run.loss(run.batch(rows))
        for hook in hooks:
            hook.remove()
    assert found[True].keys() == set(run.plan.shape.family.stacks)
    for stack, plain in found[False].items():
        added = (found[True][stack] - plain).abs().amax(-1)
        bounds = noise_bounds(
            ALPHA, [length for row in rows for length in run.plan.task.read_by(stack, row)], plain.shape
        )[..., 0]
        assert ((added > 0) == (bounds > 0)).all()
        assert (added <= bounds + 1e-6).all()
        assert (added[bounds > 0] > 0.5 * bounds[bounds > 0]).float().mean() > 0.9


@pytest.mark.slow
def test_a_step_is_noisy_and_an_evaluation_is_not(tmp_path: Path) -> None:
    losses, measured = [], []
    for alpha in (None, ALPHA):
        run, state = tiny_fit(_one_step(tmp_path, training__neftune_noise_alpha=alpha))
        run.adapted.model.eval()
        found = evaluate_loss(run, run.plan.data.train, 4)
        assert found is not None
        measured.append(found.loss)
        fit(run, state)
        losses.append(state.last_loss)
    assert measured[0] == measured[1]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_what_a_preference_is_compared_with_is_read_without_noise(tmp_path: Path) -> None:
    """Computed anew or once before the first step: the reference, and so the loss, is the same."""
    seen: list[float] = []
    for epochs in (1, 2):  # of two, references are kept
        run = {"num_train_epochs": epochs, "max_steps": None, "output_dir": str(tmp_path / str(epochs))}
        options = {f"training__{key}": value for key, value in run.items()}
        config = tiny_config(tmp_path, task="preference", training__neftune_noise_alpha=ALPHA, **options)
        events: list[Event] = []
        api.train(config, observer=events.append)
        seen.append(next(event.loss for event in events if isinstance(event, StepDone)))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
