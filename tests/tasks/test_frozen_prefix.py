"""What frozen layers give, kept for each batch: the same losses to the bit, and what is damaged is computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.errors import InvalidInputError
from loraft.models.registry import DECODERS
from loraft.planning.run_plan import plan_run
from loraft.tasks.batches import BatchLayout
from loraft.tasks.frozen_prefix import FrozenPrefix, content_of, kept_positions
from loraft.training.loop import fit
from loraft.training.trainer import keep_frozen_prefix
from tests.tiny import save_tiny
from tests.training.building import rows, tiny_config, tiny_fit, without_dropout, write_rows
from tests.training.test_trainer import metrics


def config_of(folder: Path, name: str, **overrides: Any) -> Any:
    given = {
        "lora__layers": "last:1", "lora__dropout": 0.1, "data__shuffle": "batches", "training__max_steps": 9,
        "training__cache_frozen_prefix": True, "training__output_dir": str(folder / name),
    }  # fmt: skip
    return tiny_config(folder, **(given | overrides))


def trained(folder: Path, name: str, **overrides: Any) -> tuple[list[dict[str, Any]], FrozenPrefix | None]:
    """What a run of three epochs logs, without times, and what was kept of it."""
    run, state = tiny_fit(config_of(folder, name, **overrides))
    kept = keep_frozen_prefix(run)
    torch.manual_seed(0)
    fit(run, state)
    return [
        {key: line.get(key) for key in ("step", "loss", "grad_norm", "eval_loss")} for line in metrics(folder / name)
    ], kept


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_losses_are_those_of_a_run_that_computes_all(tmp_path: Path, dtype: str, packing: str) -> None:
    write_rows(tmp_path / "eval.jsonl", rows(6))
    options = {"model__dtype": dtype, "data__packing": packing, "data__eval": str(tmp_path / "eval.jsonl")}
    with_it, kept = trained(tmp_path, "on", **options)
    without, none = trained(tmp_path, "off", training__cache_frozen_prefix=False, **options)
    assert with_it == without
    assert none is None
    assert kept is not None
    assert (kept.computed, kept.read) == (3 + 1, 6 + 2)
    held = sum(path.stat().st_size for path in (tmp_path / "on/frozen_prefix").rglob("*.states"))
    predicted = plan_run(config_of(tmp_path, "on", **options)).frozen_prefix_bytes
    assert predicted < held < predicted + 200 * kept.computed


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", sorted(DECODERS))
def test_every_family_goes_on_from_what_was_kept(tmp_path: Path, model_type: str) -> None:
    """With gradient checkpointing, which calls layers in its own way."""
    given = {
        "model_type": model_type,
        "training__gradient_checkpointing": True,
        "training__max_steps": 6,
        "lora__dropout": 0.0,
    }
    try:
        with_it, kept = trained(tmp_path, "on", **given)
    except InvalidInputError as error:
        assert "of the model's config draws anew" in str(error)  # noqa: PT017
        return
    without, _ = trained(tmp_path, "off", training__cache_frozen_prefix=False, **given)
    assert with_it == without
    assert kept is not None
    assert (kept.computed, kept.read) == (3, 3)


def test_what_is_damaged_or_missing_is_computed_anew(tmp_path: Path) -> None:
    run, _ = tiny_fit(config_of(tmp_path, "run"))
    kept = keep_frozen_prefix(run)
    assert kept is not None
    run.adapted.model.train()
    without_dropout(run.adapted.loaded.model)
    batches = [run.batch(run.plan.data.train[start : start + 4]) for start in (0, 4, 8)]
    losses = [run.loss(batch).item() for batch in batches]
    first, second, _ = sorted((tmp_path / "run/frozen_prefix").rglob("*.states"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    second.unlink()
    assert [run.loss(batch).item() for batch in batches] == losses
    assert (kept.computed, kept.read) == (5, 1)
    assert first.read_bytes() == whole


def test_a_batch_is_told_by_what_the_host_has_of_it(tmp_path: Path) -> None:
    """Of what is on the meta device nothing can be read; on CUDA reading it would wait."""
    run, _ = tiny_fit(config_of(tmp_path, "run"))
    first, second = (run.batch(run.plan.data.train[start : start + 4]) for start in (0, 4))
    assert content_of(first.to("meta")) == content_of(first) != content_of(second)


def test_what_was_kept_under_another_name_goes(tmp_path: Path) -> None:
    (tmp_path / ("a" * 16)).mkdir()
    (tmp_path / ("b" * 16)).mkdir()
    FrozenPrefix([], tmp_path, "b" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["b" * 16]


def test_positions_are_those_of_the_batches_as_they_are_laid() -> None:
    batches = [[[1, 2, 3], [1, 2, 3, 4, 5]], [[1] * 7]]
    assert kept_positions(batches, BatchLayout(packed=False, pad_id=0)) == 2 * 5 + 7
    assert kept_positions(batches, BatchLayout(binary_digits=2, most=99)) == 2 * 6 + 8
    assert kept_positions(batches, BatchLayout(packed=True, pad_id=0)) == 15
    assert kept_positions(batches, BatchLayout(packed=True, pad_id=0, multiple_of=8)) == 16
    assert kept_positions(batches, BatchLayout(packed=True, pad_id=0, shares=True)) == 13


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"data__shuffle": True}, "stay the same"),
        ({"data__streaming": True, "data__shuffle": False}, "as they come"),
        ({"training__neftune_noise_alpha": 5.0}, "noise"),
        ({"training__router_aux_loss_coef": 0.1}, "routers"),
        ({"lora__layers": "all"}, "no layer below"),
        ({"lora__layers": "first:1"}, "no layer below"),
        ({"method": "full"}, "method is full"),
        ({"task": "seq_cls"}, "causal_lm"),
        ({"model__add_tokens": ["<new>"]}, "lies outside|no layer below"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises((InvalidInputError, ValueError), match=why):
        plan_run(config_of(tmp_path, "run", **options))


def test_a_base_with_dropout_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama", attention_dropout=0.1)
    write_rows(tmp_path / "train.jsonl", rows())
    with pytest.raises(InvalidInputError, match="attention_dropout"):
        plan_run(config_of(tmp_path, "run"))
