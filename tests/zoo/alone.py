"""What transformers and peft do with a tiny model without loraft: what loraft can be measured by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.zoo.models import GROUPS, batch, build

T = TypeVar("T")
STEPS = ("build", "load", "forward", "backward", "peft", "generate")
"""What is done with each, in this order."""
TASKS: Mapping[str, str] = {"seq2seq": "SEQ_2_SEQ_LM", "classification": "SEQ_CLS"}
"""The names that peft has for what a group's models do; all others go on with a text."""
REFUSED_BY_PEFT = ("out_proj", "conv1d", "router", "gate", "pre_classifier")
"""Suffixes of linear modules that peft cannot adapt in one type or another: all-linear then names the others."""


class Failed(Exception):
    """A step that transformers or peft cannot do, with what they said."""

    def __init__(self, step: str, error: Exception) -> None:
        super().__init__(f"{step}: {type(error).__name__}: {error}")
        self.step = step


def train_alone(model_type: str, group: str) -> None:
    """Build a model, differentiate its loss, train a LoRA adapter on it, let it write.

    Raises:
        Failed: At the first step that cannot be.
    """
    model = _try("build", lambda: uncached(model_type, group))
    given = batch(model, group)
    _try("load", lambda: require_reloadable(model, group))
    loss = _try("forward", lambda: finite_loss(model.train(), given))
    _try("backward", loss.backward)
    _try("peft", lambda: trained_by_peft(uncached(model_type, group), group, given))
    if group != "classification":
        _try("generate", lambda: written(model.eval(), given))


def uncached(model_type: str, group: str) -> PreTrainedModel:
    """A tiny model that keeps nothing of what it read, as in training."""
    model = build(model_type, group)
    model.config.use_cache = False
    return model


def _try(step: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:
        raise Failed(step, error) from error


def require_reloadable(model: PreTrainedModel, group: str) -> None:
    """Save a model and load it: its config and its tensors are the same again."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = GROUPS[group].auto.from_pretrained(folder, dtype=torch.float32)
    own, found = model.state_dict(), again.state_dict()
    if other := [name for name in own if name not in found or not torch.equal(own[name], found[name])]:
        raise ValueError(f"{len(other)} tensors are others after loading: {', '.join(other[:3])}")


def finite_loss(model: nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss that a model gives of a batch."""
    loss: torch.Tensor | None = model(**given).loss
    if loss is None or not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    return loss


def written(model: PreTrainedModel, given: Mapping[str, torch.Tensor]) -> list[int]:
    """Eight tokens of the model's own, greedy, after the first text."""
    prompt = {name: given[name][:1] for name in given if name != "labels"}
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    new: list[int] = ids[0].tolist()
    return new if model.config.is_encoder_decoder else new[prompt["input_ids"].shape[1] :]


def trained_by_peft(model: PreTrainedModel, group: str, given: Mapping[str, torch.Tensor]) -> list[str]:
    """The lora_B that get a gradient where peft adapts all linear modules, or those that it can."""
    kind = TASKS.get(group, "CAUSAL_LM") if group != "seq2seq" or model.config.is_encoder_decoder else "CAUSAL_LM"
    wanted: list[str | list[str]] = ["all-linear", sorted(_named(model))]
    for targets in wanted:
        try:
            config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type=kind)
            adapted = get_peft_model(model, config)
            finite_loss(adapted.train(), given).backward()
            break
        except Exception:
            if targets is wanted[-1]:
                raise
            model = uncached(model.config.model_type, group)
    reached = [n for n, p in adapted.named_parameters() if "lora_B" in n and p.grad is not None and p.grad.any()]
    if not reached:
        raise ValueError("no adapter gets a gradient")
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        base = uncached(model.config.model_type, group)
        require_same(adapted, PeftModel.from_pretrained(base, folder))
    return reached


def require_same(one: nn.Module, other: nn.Module) -> None:
    """Adapters that were saved and loaded again are the same."""
    given = {name: weight for name, weight in one.state_dict().items() if "lora_" in name}
    found = other.state_dict()
    if lost := [name for name, weight in given.items() if name not in found or not torch.equal(found[name], weight)]:
        raise ValueError(f"{len(lost)} tensors of the adapter are others after loading: {', '.join(lost[:2])}")


def _named(model: PreTrainedModel) -> Iterator[str]:
    """The linear modules but the head, and but what peft refuses."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        plain = type(module) is nn.Linear or isinstance(module, Conv1D)
        if plain and module is not head and not name.endswith((*REFUSED_BY_PEFT, "score", "classifier")):
            yield name
