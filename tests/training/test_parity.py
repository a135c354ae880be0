"""C9 on one rank: every task and method, the same rows in one, two or four batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.building import close, recorded, tiny_config

SETUPS = {"2x2": (2, 2), "1x4": (1, 4)}
TASKS = ("causal_lm", "seq2seq_lm", "seq_cls")


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
@pytest.mark.parametrize("task", TASKS)
def test_c9_accumulation_gives_the_gradient_of_the_whole(tmp_path: Path, task: str, method: str) -> None:
    """C9: four rows of uneven lengths as 4×1, 2×2 and 1×4, equal to 1e-5 of each parameter's largest gradient."""

    def gradients(size: int, accumulation: int) -> list[dict[str, torch.Tensor]]:
        options: dict[str, Any] = {
            "training__per_device_train_batch_size": size,
            "training__gradient_accumulation_steps": accumulation,
            "training__max_grad_norm": None,
        }
        return recorded(tiny_config(tmp_path, task=task, method=method, training__max_steps=3, **options))

    whole = gradients(4, 1)
    assert len(whole) == 3
    assert all(gradient.abs().max() > 0 for name, gradient in whole[0].items() if "lora_A" in name)
    for size, accumulation in SETUPS.values():
        for theirs, ours in zip(whole, gradients(size, accumulation), strict=True):
            close(ours, theirs, 1e-5)


def test_c9_an_uneven_last_window_of_weighted_classes_is_whole(tmp_path: Path) -> None:
    """C9: a class counts what it weighs in the whole window, however its rows are spread over batches."""
    options: dict[str, Any] = {
        "task": "seq_cls",
        "training__class_weights": "balanced",
        "training__max_grad_norm": None,
    }
    whole, parts = (
        recorded(
            tiny_config(
                tmp_path,
                **options,
                training__per_device_train_batch_size=size,
                training__gradient_accumulation_steps=accumulation,
                training__max_steps=3,
            )
        )
        for size, accumulation in ((5, 1), (1, 5))
    )
    for theirs, ours in zip(whole, parts, strict=True):
        close(ours, theirs, 1e-5)
