"""What a model is for: as it was recorded when it was trained, or as its architecture tells."""

from __future__ import annotations

from loraft.adapters.metadata import ResolvedTarget
from loraft.config.schema import Task
from loraft.models.hf_config import is_classifier
from loraft.models.load_model import load_any_config
from loraft.models.registry import FAMILIES, TASK_OF_KIND, spec_of

__all__ = ["task_of"]


def task_of(target: ResolvedTarget) -> Task:
    """The task that a target was trained for, or that a base which nobody recorded anything of can do.

    Raises:
        InvalidInputError: Nothing is recorded, and the base's config cannot be read or is of no kind that loraft knows.
    """
    if target.manner.task is not None:
        return target.manner.task
    config = load_any_config(target.model_section)
    if is_classifier(config):
        return "seq_cls"
    return TASK_OF_KIND[spec_of(config.model_type, FAMILIES).kind]
