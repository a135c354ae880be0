"""Experiments on a tiny copy of an architecture: whether it reads text alone, what its outputs come through."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError
from loraft.kernels.packed_experts import hold, pack
from loraft.models.auto_model import other_use
from loraft.models.hf_config import reason
from loraft.models.model_structure import expert_tensors
from loraft.models.modules import TextMark, linear_modules, mark_text
from loraft.models.quantize import experts_in_4_bits
from loraft.models.registry import ModelSpec, place_in, taken_by
from loraft.models.tiny_copy import agree, not_on_text, random_row, text_read, tried

PASSES = 2
"""In training some architectures leave out whole layers by chance."""


def unreached(model: PreTrainedModel, spec: ModelSpec, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The linear modules that give no gradient and the experts that get none, as paths inside a layer.

    Cross attention of a decoder alone, indexers that choose which tokens are attended to, parts that read layouts or
    entities, experts for images, weights that are read past their module: what an adapter adds there changes nothing
    that is learned. Nor does it where a module reads nothing but zeros.
    Experts side by side count as one: not each of them sees a token. `model` is a tiny copy of the architecture, and
    `given` what it reads, `[1, time]` each.
    """
    inside, experts = _in_layers(linear_modules(model), spec), _in_layers(expert_tensors(model), spec)
    changes: dict[str, list[Tensor]] = {}

    def changed(name: str, _: nn.Module, read: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if read and not read[0].any():
            return output
        changes.setdefault(name, []).append(torch.zeros_like(output, requires_grad=True))
        return output + changes[name][-1]

    hooks = [model.get_submodule(name).register_forward_hook(partial(changed, name)) for name in inside]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for seed in range(PASSES):
                torch.manual_seed(seed)
                model.train()(**given).logits.square().sum().backward()
        learned = {path for name, path in experts.items() if _is_learned(model.get_parameter(name))}
    finally:
        for each in hooks:
            each.remove()
        model.train(False)
        model.zero_grad()
    found = {_counted(inside[name]) for name, each in changes.items() if any(_is_learned(one) for one in each)}
    modules = (path for path in inside.values() if _counted(path) not in found)
    return tuple(dict.fromkeys([*modules, *(path for path in experts.values() if path not in learned)]))


def packs_experts(model: PreTrainedModel, spec: ModelSpec) -> bool:
    """Whether experts can be dequantized while their module computes: nothing else reads them.

    It is tried on a copy of `model`, which is tiny itself.
    """
    return spec.experts is None or tried(_computes_with_packed, copy.deepcopy(model), spec)


def _computes_with_packed(model: PreTrainedModel, spec: ModelSpec) -> bool:
    given, other = text_read(model), copy.deepcopy(model)
    for name in experts_in_4_bits(model, spec, QuantizationSection()):
        module, _, leaf = name.rpartition(".")
        packed = pack(model.get_parameter(name).data, "nf4", double_quant=True)
        hold(model.get_submodule(module), leaf, packed)
        other.get_parameter(name).data.copy_(packed.value())
    return agree(model(**given).logits, other(**given).logits)


def _in_layers(names: Iterable[str], spec: ModelSpec) -> dict[str, str]:
    """Those of the full names that lie in the layers, with their paths inside these."""
    places = {name: place_in(spec.stacks, name) for name in names}
    return {name: place.inside for name, place in places.items() if place.layer >= 0}


def _counted(path: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", path)


def _is_learned(change: Tensor) -> bool:
    return change.grad is not None and bool(change.grad.any())


VALUES = (0, 1)
"""What may mean text where an input says of each token what kind it is."""


def possible_marks(model: PreTrainedModel) -> Iterator[TextMark]:
    """The inputs of a forward that say what kind a token is of, with each value that may mean text."""
    for name in inspect.signature(model.forward).parameters:
        if "token_type" in name:
            yield from ((name, value) for value in VALUES)


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the last token changes what is made of itself alone."""
    row = random_row(model)
    changed = row.clone()
    changed[0, -1] -= 1
    logits = []
    for ids in (row, changed):
        torch.manual_seed(0)  # what is left out in training by chance is the same in both
        logits.append(model(input_ids=ids, use_cache=False).logits)
    one, other = logits
    return agree(one[:, :-1], other[:, :-1]) and not agree(one[:, -1], other[:, -1])


def marked(config: PreTrainedConfig, spec: ModelSpec, model: PreTrainedModel) -> ModelSpec:
    """The facts with the input that a model needs to take a row for text, which it is given from here on.

    Raises:
        ModelError: It reads what comes after a token, or cannot be trained on text alone.
    """
    if not tried(is_causal, model):
        message = f"model type {config.model_type!r} reads what comes after a token too: it writes no text"
        raise ModelError(message, key="model.name_or_path", remedy=taken_by(other_use(config, "decoder")))
    for mark in (None, *possible_marks(model)):
        unmark = mark_text(model, mark)
        if tried(_is_causal_as_trained, model):
            how = () if mark is None else (f"all of a row is given as text, by {mark[0]} {mark[1]}",)
            return replace(spec, text_mark=mark, unknown=(*spec.unknown, *how))
        unmark()
    require_trained_on_text(config, model)
    raise not_on_text(config, "as it is trained it reads what comes after a token too")


def require_trained_on_text(config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """Refuse an architecture whose forward asks for more than text once it is trained.

    Raises:
        ModelError: With what the architecture says.
    """
    read = text_read(model)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.train()(**read)
    except Exception as error:  # whatever an architecture refuses
        raise not_on_text(config, reason(error)) from error
    finally:
        model.train(False)


def _is_causal_as_trained(model: PreTrainedModel) -> bool:
    """Whether it is causal in training mode, with the attention that models are loaded with."""
    attention = model.config._attn_implementation
    with suppress(ValueError):  # a part of it has no such attention
        model.set_attn_implementation("sdpa" if model._supports_sdpa else attention)
    try:
        return is_causal(model.train())
    finally:
        model.train(False)
        model.set_attn_implementation(attention)
