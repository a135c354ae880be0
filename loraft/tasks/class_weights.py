"""What a row of each class counts in the loss of a classifier. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from loraft.config.schema import RunConfig
from loraft.errors import Problem
from loraft.tokenization.classification_rows import ClassificationRenderer, class_called
from loraft.tokenization.examples import Example
from loraft.tokenization.row_renderer import RowRenderer

__all__ = ["class_weight_problems", "class_weights"]

KEY = "training.class_weights"


def class_weight_problems(config: RunConfig, renderer: RowRenderer) -> list[Problem]:
    """What is wrong with the weights that a config gives: each class needs one, and there are no others."""
    given = config.training.class_weights
    if not isinstance(given, dict) or not isinstance(renderer, ClassificationRenderer):
        return []
    problems = []
    called = {name: class_called(name, renderer.labels) for name in given}
    if unknown := [name for name, number in called.items() if number is None]:
        classes = ", ".join(renderer.labels)
        problems.append(
            Problem(f"there is no class {', '.join(unknown)}", key=KEY, remedy=f"The classes are {classes}.")
        )
    if missing := [name for number, name in enumerate(renderer.labels) if number not in called.values()]:
        problems.append(
            Problem(f"{', '.join(missing)} has no weight", key=KEY, remedy="Give each class one; 1 is plain.")
        )
    return problems


def class_weights(config: RunConfig, labels: Sequence[str], examples: Sequence[Example]) -> Tensor | None:
    """`[classes]`, what a row of each class counts; None where each counts the same.

    Source: balanced is rows / (classes · rows of the class), as scikit-learn has it; a class without rows counts 1.
    """
    given = config.training.class_weights
    if given is None:
        return None
    if isinstance(given, dict):
        weights = {class_called(name, labels): weight for name, weight in given.items()}
        return torch.tensor([weights[number] for number in range(len(labels))])
    counts = Counter(example.labels[0] for example in examples)
    total = sum(counts.values())
    return torch.tensor([total / (len(labels) * counts[i]) if counts[i] else 1.0 for i in range(len(labels))])
