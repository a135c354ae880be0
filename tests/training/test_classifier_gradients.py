"""A classifier's loss and gradients are those of the rows, however they are batched and padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification

from loraft import api
from loraft.config.schema import RunConfig
from loraft.models.modules import class_logits
from loraft.models.registry import CLASSIFIERS
from loraft.tasks import TASKS
from loraft.tasks.batches import BatchLayout
from loraft.tasks.loss import ClassificationLoss
from loraft.tokenization.plain_text_rows import ClassificationRenderer
from tests.tiny import TELLING, mostly_slow, tiny_sizes, tiny_tokenizer
from tests.training.building import recorded, tiny_config, tiny_fit, write_rows
from tests.training.classifiers import LABELS, SOME, classifier_config

CELLS = [(4, 1), (2, 2), (1, 4)]
"""Rows in a batch × batches in a step: each is four rows a step."""


def gradients(folder: Path, model_type: str, cell: tuple[int, int], **overrides: object) -> dict[str, torch.Tensor]:
    rows, accumulated = cell
    config = classifier_config(
        folder, model_type, training__max_steps=1, training__per_device_train_batch_size=rows,
        training__gradient_accumulation_steps=accumulated, **overrides,
    )  # fmt: skip

    def still(run: object) -> None:
        for module in run.adapted.model.modules():  # type: ignore[attr-defined]
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    (step,) = recorded(config, prepare=still)
    return step


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_c9_gradients_do_not_depend_on_accumulation(tmp_path: Path, model_type: str, method: str) -> None:
    """C9: {4×1, 2×2, 1×4} with uneven lengths and classes that weigh differently, equal to 1e-5 relative."""
    for weights in (None, "balanced"):
        found = [
            gradients(tmp_path, model_type, cell, method=method, training__class_weights=weights) for cell in CELLS
        ]
        assert found[0]
        assert any("classifier" in name or "score" in name for name in found[0])
        whole = torch.stack([gradient.norm() for gradient in found[0].values()]).norm()
        for other in found[1:]:
            assert other.keys() == found[0].keys()
            for name, gradient in found[0].items():
                # The gradient of a key's bias is zero (softmax does not see it): rounding is all that there is.
                size = gradient.norm() if gradient.norm() > 1e-5 * whole else whole
                assert (other[name] - gradient).norm() < 1e-5 * size, name


@pytest.mark.parametrize("model_type", mostly_slow(SOME, "deberta-v2", "llama"))
def test_c15_padding_does_not_move_the_loss(tmp_path: Path, model_type: str) -> None:
    """C15: a padded batch's loss is the sum of the single rows' losses."""
    run, _ = tiny_fit(classifier_config(tmp_path, model_type))
    run.adapted.model.eval()
    with torch.no_grad():
        singles = [run.loss(run.batch([row])).item() for row in run.plan.data.train]
        together = run.loss(run.batch(run.plan.data.train)).item()
        other_padding = run.loss(run.plan.task.collate(run.plan.data.train, BatchLayout(packed=False, pad_id=7))).item()
    assert len({len(row.input_ids) for row in run.plan.data.train}) > 3
    assert together == pytest.approx(sum(singles), rel=1e-5)
    assert other_padding == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("model_type", mostly_slow(CLASSIFIERS, *TELLING))
def test_c50_logits_are_those_of_transformers(model_type: str) -> None:
    """C50: every family, uneven lengths, padded with a token of its own or with the one that ends a text."""
    sizes = {**tiny_sizes(model_type), "num_labels": 3}
    for pad_id in (sizes["pad_token_id"], sizes["eos_token_id"]):
        config = AutoConfig.for_model(model_type, **{**sizes, "pad_token_id": pad_id})
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        family = CLASSIFIERS[model_type]
        lengths = [3, 9, 1, 6]
        ids, mask = torch.full((4, 9), pad_id), torch.zeros(4, 9, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.arange(5, 5 + length) + 11 * row
            mask[row, :length] = 1
        with torch.no_grad():
            ours = class_logits(model, family, ids, mask)
            theirs = model(input_ids=ids, attention_mask=mask).logits
            alone = torch.cat([class_logits(model, family, ids[i : i + 1, :n], mask[i : i + 1, :n])
                               for i, n in enumerate(lengths)])  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", ["balanced", {"late": 0.5, "fine": 2.0, "other": 3.0}])
def test_class_weights_are_those_of_torch(tmp_path: Path, given: str | dict[str, float]) -> None:
    """Over a step of several batches the loss is torch's own weighted mean over all its rows."""
    config = classifier_config(tmp_path, training__class_weights=given)
    run, _ = tiny_fit(config)
    run.adapted.model.eval()
    assert isinstance(run.loss, ClassificationLoss)
    labels = sorted(LABELS)
    weights = TASKS["seq_cls"].loss_weights(config, labels, run.plan.data.train, [1.0] * len(run.plan.data.train))
    assert weights is not None
    if given == "balanced":
        counts = [sum(row.labels == [number] for row in run.plan.data.train) for number in range(3)]
        torch.testing.assert_close(weights, torch.tensor([len(run.plan.data.train) / (3 * count) for count in counts]))
    else:
        assert weights.tolist() == [given[name] for name in labels]  # type: ignore[index]
    batches = [run.batch(run.plan.data.train[start : start + 5]) for start in range(0, len(run.plan.data.train), 5)]
    with torch.no_grad():
        ours = sum(run.loss(batch).item() for batch in batches) / sum(run.loss.weight(batch) for batch in batches)
        logits = torch.cat([run.loss.logits(batch) for batch in batches])  # type: ignore[arg-type]
    targets = torch.tensor([row.labels[0] for row in run.plan.data.train])
    assert ours == pytest.approx(cross_entropy(logits, targets, weight=weights).item(), rel=1e-5)


@pytest.mark.slow
def test_gradients_after_an_evaluation_are_the_same(tmp_path: Path) -> None:
    """C12 for classifiers: their 4-bit base too."""
    config = classifier_config(tmp_path, "llama", method="qlora", training__max_steps=1)
    first = recorded(config)

    def evaluate(run: object) -> None:
        run.adapted.model.eval()  # type: ignore[attr-defined]
        with torch.inference_mode():
            run.loss(run.batch(run.plan.data.train))  # type: ignore[attr-defined]

    after = recorded(config, prepare=evaluate)
    assert all(torch.equal(first[0][name], after[0][name]) for name in first[0])


def test_figures_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    generator = torch.Generator().manual_seed(0)
    for classes, rows in ((2, 5), (4, 50), (30, 20)):
        right, given = (torch.randint(classes, (rows,), generator=generator) for _ in range(2))
        figures = ClassificationLoss.figures(torch.stack([right, given]))
        assert figures["accuracy"] == pytest.approx(accuracy_score(right, given))
        assert figures["macro_f1"] == pytest.approx(f1_score(right, given, average="macro", zero_division=0), rel=1e-12)


@pytest.mark.slow
def test_the_best_checkpoint_may_be_chosen_by_accuracy(tmp_path: Path) -> None:
    from loraft.training.loop import fit

    for metric in ("loss", "accuracy"):
        run, state = tiny_fit(
            classifier_config(
                tmp_path, data__eval=str(tmp_path / "train.jsonl"), training__eval_steps=1, training__max_steps=3,
                training__metric_for_best_model=metric, training__output_dir=str(tmp_path / metric),
            )
        )  # fmt: skip
        told: list[object] = []
        run.observer = told.append
        fit(run, state)
        scores = [(e.loss, e.figures["accuracy"], e.step) for e in told if type(e).__name__ == "Evaluated"]  # type: ignore[attr-defined]
        best = min(scores, key=lambda s: (s[0] if metric == "loss" else -s[1], s[2]))
        assert state.best_step == best[2]


def test_the_weight_of_true_is_that_of_the_class_however_it_is_spelled() -> None:
    """YAML reads True as the boolean true, and a CSV of Python's has True."""
    given = {"true": 3.0, "False": 1.0}
    data = {"train": "x", "eval": None}
    values = {"task": "seq_cls", "model": {"name_or_path": "x"}, "data": data, "training": {"class_weights": given}}
    config = RunConfig.model_validate(values)
    renderer = ClassificationRenderer(tiny_tokenizer(), labels=("False", "True"))
    assert TASKS["seq_cls"].problems(config, renderer) == []
    weights = TASKS["seq_cls"].loss_weights(config, renderer.labels, [], [])
    assert weights is not None
    assert weights.tolist() == [1, 3]
    values["training"] = {"class_weights": {**given, "True": 2.0}}
    (problem,) = TASKS["seq_cls"].problems(RunConfig.model_validate(values), renderer)
    assert (problem.message, problem.key) == ("true and True are one class", "training.class_weights")


def test_balanced_counts_rows_as_often_as_they_are_drawn(tmp_path: Path) -> None:
    for name, label, count in (("a", "late", 8), ("b", "fine", 2)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"the order {n}", "label": label} for n in range(count)])
    sources = [{"path": str(tmp_path / "a.jsonl")}, {"path": str(tmp_path / "b.jsonl"), "weight": 4}]
    config = tiny_config(tmp_path, task="seq_cls", data__train=sources, training__class_weights="balanced")
    run, _ = tiny_fit(config)
    assert isinstance(run.loss, ClassificationLoss)
    assert run.loss._class_weights is not None
    assert run.loss._class_weights.tolist() == [1, 1]


@pytest.mark.slow
def test_all_biases_are_saved_once_beside_a_module_that_is_trained_whole(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, task="seq_cls", lora__bias="all", training__max_steps=2)
    saved = api.train(config).saved
    ids = torch.tensor([[5, 9, 40, 41, 7]])
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    with torch.no_grad():
        of_peft = PeftModel.from_pretrained(base, str(saved)).eval()(input_ids=ids).logits
        merged = api.merge(str(tmp_path / "run"), dtype="float32").out
        of_merged = AutoModelForSequenceClassification.from_pretrained(merged)(input_ids=ids).logits
    torch.testing.assert_close(of_peft, of_merged, atol=1e-5, rtol=1e-5)  # float32's order of sums
