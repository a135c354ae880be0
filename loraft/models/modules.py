"""The modules of a model: their names, compared by path parts, the linear ones, and the model inside its wrappers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.errors import ModelError
from loraft.models.hf_config import whole_number
from loraft.models.registry import ModelSpec

Kind = TypeVar("Kind")


def matches(module: str, *names: str) -> bool:
    """Whether one of `names` is the full name of `module` or its last path parts."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def is_within(module: str, *outer: str) -> bool:
    """Whether `module` is one of `outer` or lies inside one."""
    return any(module == one or module.startswith(f"{one}.") for one in outer)


def nearest(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, or all of them where none is."""
    short = sorted({known.rpartition(".")[2] for known in names})
    close = difflib.get_close_matches(name.rpartition(".")[2], short, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else f"The model has {', '.join(short)}."


def modules_of(model: nn.Module, *kinds: type[Kind]) -> dict[str, Kind]:
    """The modules of some classes, by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def linear_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear module, the head too: (inputs, outputs) by full name; a 4-bit one has the sizes it stands for."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and computes_linear(type(part)):
            sizes[name] = int(part.in_features), int(part.out_features)  # some of transformers have them as tensors
        elif isinstance(part, Conv1D):  # GPT-2's weight is [inputs, outputs]
            sizes[name] = part.weight.shape[0], part.weight.shape[1]
    return sizes


def computes_linear(kind: type[nn.Linear]) -> bool:
    """Whether a class of linear modules computes x Wᵀ + b: some of transformers choose experts, or work in groups."""
    if kind.forward is nn.Linear.forward or not kind.__module__.startswith("transformers.models."):
        return True
    tried: Any = nn.Linear(3, 2)
    x = torch.ones(2, 3)
    with torch.no_grad():
        expected = tried(x)
        tried.__class__ = kind
        try:
            return torch.equal(tried(x), expected)
        except Exception:  # what it has besides a weight and a bias is not there
            return False


def hidden_in(model: PreTrainedModel) -> int:
    """The width of the hidden states: as the config says, or of the embedding where it does not."""
    return whole_number(model.config, "hidden_size") or int(embedding_weight(model).shape[-1])


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The table of embeddings, `[rows, width]`; of a Perceiver the array that its layers read beside a text."""
    embedding: Any = model.get_input_embeddings()
    weight: Tensor = getattr(embedding, "weight", embedding)
    return weight


def parameter_count(model: nn.Module) -> int:
    """The numbers that a model holds: tied ones once, 4-bit ones by what they stand for."""
    packed = {
        id(module.weight): module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")
    }
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def wrapped_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with its adapters in place, whatever is wrapped around it."""
    if isinstance(model, PreTrainedModel):
        return model
    # peft puts its layers into the model that it wraps, so the inner model alone is the adapted one.
    return cast("PreTrainedModel", cast("Any", model).get_base_model())


def output_head(model: PreTrainedModel) -> nn.Module | None:
    """The module that makes logits over the vocabulary; None where a model has none."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


@dataclass(frozen=True)
class OutputHead:
    """The head of a model that generates, and what stands around it.

    Attributes:
        scale: What the head's outputs are multiplied by.
        bias: `[vocab]`, added to them.
        softcap: The cap c of c · tanh(logits / c).
    """

    module: nn.Module
    scale: float
    bias: Tensor | None
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]`, the final hidden states, to `[..., vocab]`."""
        logits: Tensor = self.module(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_of(model: PreTrainedModel, family: ModelSpec) -> OutputHead:
    """The head of a model that generates, with what its family does to the logits."""
    head, config = output_head(model), model.config.get_text_config()
    assert head is not None, "what generates has a head"
    multiplier, divisor = _number(config, family.logit_multiplier), _number(config, family.logit_divisor)
    scale = (multiplier or 1.0) / (divisor or 1.0)
    if family.scales_if is not None and getattr(config, family.scales_if, False):
        scale *= float(config.hidden_size) ** -0.5
    bias = getattr(model, family.logits_bias)[0] if family.logits_bias else None
    return OutputHead(head, scale, bias, _number(config, family.final_softcap))


def _number(config: object, attribute: str | None) -> float | None:
    value = getattr(config, attribute, None) if attribute else None
    return None if value is None or not math.isfinite(value) else float(value)


def text_states(model: PreTrainedModel, *, plain: bool = False, **read: Any) -> Tensor:
    """The final hidden states of a decoder, or the logits where `plain`: `[lines, time, hidden or vocab]`."""
    output: Any = (model if plain else model.base_model)(**read, use_cache=False)
    states: Tensor = output.logits if plain else output.last_hidden_state
    return states


def states_and_router_loss(model: PreTrainedModel, *, plain: bool = False, **read: Any) -> tuple[Tensor, Tensor | None]:
    """As `text_states`, or the logits where `plain`; and the auxiliary loss of the routers of a mixture.

    It is the type's own, without its coefficient: its forward computes it from what the routers gave, and the mask of
    `read` tells it what is padding. None where a type has none.
    """
    states: list[Tensor] = []

    def give(_: nn.Module, arguments: Any, given: dict[str, Any]) -> Any:
        return arguments, given | read  # whether or not the forward around it hands all of it on

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output.last_hidden_state)

    base: Any = model.base_model
    hooks = [] if plain else [base.register_forward_pre_hook(give, with_kwargs=True), base.register_forward_hook(keep)]
    only_last = {} if plain else {"logits_to_keep": 1}
    try:
        output = model(**read, **only_last, output_router_logits=True, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return output.logits if plain else states[-1], getattr(output, "aux_loss", None)


def pair_states(
    model: PreTrainedModel, source: Tensor, mask: Tensor | None, read: Tensor, *, plain: bool = False
) -> Tensor:
    """The final hidden states of the decoder of an encoder-decoder, `[rows, time, hidden]`; or the logits.

    Args:
        model: The model itself, with adapters injected where there are any, not a wrapper around it.
        source: `[rows, source]`, what the encoder reads, padded where `mask` is 0.
        mask: `[rows, source]`.
        read: `[rows, time]`, what the decoder reads.
        plain: Give the logits: `[rows, time, vocab]`.
    """
    if plain:
        logits: Tensor = model(input_ids=source, attention_mask=mask, decoder_input_ids=read, use_cache=False).logits
        return logits
    encoder, decoder = model.get_encoder(), model.get_decoder()  # type: ignore[no-untyped-call]
    states: Tensor = decoder(
        input_ids=read,
        encoder_hidden_states=encoder(input_ids=source, attention_mask=mask).last_hidden_state,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return states


def decoder_inputs(model: nn.Module, target: Tensor) -> Tensor:
    """What the decoder reads to say `target`, as the model itself makes it in training.

    mBART begins with the last token of the target, which may be its language; all others with their start token.

    Args:
        model: An encoder-decoder of transformers, with or without adapters.
        target: `[rows, time]`, as is what comes back.

    Raises:
        ModelError: The decoder has no start token.
    """
    inner: Any = wrapped_model(model)
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        try:
            made: Tensor = inner.prepare_decoder_input_ids_from_labels(labels=target)
        except (TypeError, ValueError) as error:  # each family says in its own way that there is none
            raise _no_start() from error
        return made
    return torch.cat([torch.full_like(target[:, :1], start_token(inner)), target[:, :-1]], dim=1)


def start_token(model: PreTrainedModel) -> int:
    """What the decoder reads first where nothing else is said.

    Raises:
        ModelError: The model does not say.
    """
    for settings in (model.generation_config, model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise _no_start()


def _no_start() -> ModelError:
    return ModelError(
        "the decoder has no start token",
        key="decoder_start_token_id",
        remedy="The model's config.json or generation_config.json must name the token that its decoder begins from.",
    )


def class_logits(
    model: PreTrainedModel,
    family: ModelSpec,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None = None,
) -> Tensor:
    """The scores of the classes: `[rows, classes]`.

    A decoder's are read at the last real token of each row, which the mask tells: not at what looks like the first
    padding, since padding may be the very token that ends a text, and not at padding itself.

    Args:
        model: The classifier itself, with adapters injected where there are any, not a wrapper around it.
        family: Its row of the table.
        input_ids: `[rows, time]`, padded on the right.
        attention_mask: `[rows, time]`, 1 at real tokens, of which each row has one at least.
        token_type_ids: `[rows, time]`, which of two texts a token is of; None where the model does not tell them apart.
    """
    read: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        read["token_type_ids"] = token_type_ids
    if family.alone:
        lengths = enumerate(attention_mask.sum(1).tolist())
        rows_alone = ({name: each[row : row + 1, :length] for name, each in read.items()} for row, length in lengths)
        return torch.cat([model(**alone).logits for alone in rows_alone])
    if not family.generates or family.plain:
        whole: Tensor = model(**read).logits
        return whole
    hidden = text_states(model, **read)
    last = attention_mask.sum(1) - 1
    rows = torch.arange(len(last), device=last.device)
    decided: Tensor = model.get_submodule(family.classifier[-1])(hidden[rows, last])
    return decided


TextMark = tuple[str, int]
"""An input of a model's forward, `[rows, time]`, and its value at every token that is text."""


def mark_text(model: PreTrainedModel, mark: TextMark | None) -> Callable[[], None]:
    """Give a model's forward the mark at every token where the caller does not; what comes back ends that."""
    if mark is None:
        return lambda: None
    name, value = mark
    # A forward of the whole hands its own value on, None included; what reads the base model alone does not.
    parts: tuple[nn.Module, ...] = tuple({id(each): each for each in (model, model.base_model)}.values())

    def with_mark(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        read = next((named[each] for each in ("input_ids", "inputs_embeds") if named.get(each) is not None), None)
        read = read if read is not None else next(iter(given), None)
        if read is None or named.get(name) is not None:
            return given, named
        return given, {**named, name: torch.full(read.shape[:2], value, device=read.device)}

    hooks: list[RemovableHandle] = [part.register_forward_pre_hook(with_mark, with_kwargs=True) for part in parts]

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


def clear(modules: Iterable[nn.Module]) -> None:
    """Give modules zeros; not in place, for of what is in the files a rank may have been given its part alone."""
    for module in (inner for each in modules for inner in each.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros_like(parameter), requires_grad=False))
