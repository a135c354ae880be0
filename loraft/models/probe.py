"""What there is to know of an architecture that the table does not have: found from the model itself.

Its layers and linear modules show in its structure. What stands around its head, and whether its rows can be laid end
to end, is tried on a tiny copy. What no experiment establishes is done in the plain way: padding, and the logits of the
model itself; slower, never wrong, and said.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.config.choices import ModelGroup
from loraft.errors import LoraftError, ModelError
from loraft.kernels.decoding import new_cache, read_on
from loraft.kernels.packed_attention import ROWS
from loraft.models.auto_model import group_of, meta_model, require_class
from loraft.models.experiments import marked, packs_experts, require_trained_on_text, unreached
from loraft.models.hf_config import (
    CLASSIFIER,
    configured_positions,
    is_used_otherwise,
    own_code,
    quietly,
    reason,
    whole_number,
)
from loraft.models.model_structure import by_structure, sized_modules
from loraft.models.modules import class_logits, decoder_inputs, head_of, is_within, pair_states, text_states
from loraft.models.registry import Caching, ModelSpec, row_of
from loraft.models.tiny_copy import CLOSE, LONG, SHORT, agree, random_row, text_read, tiny_copy, tried

LONGEST, MOST_SPARE = 512, 4
"""The longest row that is tried, and how many positions may be spare."""
TOGETHER = (SHORT, LONG, 5)
"""The rows that are laid end to end."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier_scale")
DIVISORS = ("logits_scaling",)
FLAGS = ("scale_decoder_outputs", "tie_word_embeddings")
"""Attributes of configs that may act on the logits."""
OF_NO_INTEREST = (
    "architectures", "id2label", "label2id", "problem_type", "dtype", "pad_token_id", "transformers_version",
)  # fmt: skip
"""What a config says besides, which does not change what an experiment shows."""
_found: dict[tuple[str, ModelGroup | None], ModelSpec] = {}


def spec_of(config: PreTrainedConfig, group: ModelGroup | None = None) -> ModelSpec:
    """The facts of an architecture that is used as `group`; None uses it as its config says.

    Raises:
        ModelError: The architecture is of another kind, or transformers has no class of it for that use.
    """
    known = None if own_code(config) or is_used_otherwise(config, group) else row_of(config.model_type, group)
    if known is not None:
        return known
    said = {name: value for name, value in config.to_dict().items() if group is None or name not in OF_NO_INTEREST}
    key = json.dumps(said, sort_keys=True, default=str), group
    if key not in _found:
        with quietly():
            _found[key] = _looked_into(config, group)
    return _found[key]


def _looked_into(config: PreTrainedConfig, group: ModelGroup | None) -> ModelSpec:
    """`_probed`, with whatever it stumbles over as a sentence."""
    try:
        return _probed(config, group)
    except LoraftError:
        raise
    except Exception as error:  # an architecture can be unlike all others in many ways
        message = f"model type {config.model_type!r} is unlike those that loraft can look into: {reason(error)}"
        raise ModelError(message, key="model.name_or_path", remedy="Choose another model.") from error


def _probed(config: PreTrainedConfig, group: ModelGroup | None) -> ModelSpec:
    group = group or group_of(config)
    if group is not None:
        require_class(config, group)
        _require_vocabulary(config)
    if group == "classifier":
        config = type(config).from_dict(config.to_dict() | {"architectures": [CLASSIFIER]})
    spec = by_structure(meta_model(config))
    if group is None:
        return spec
    small = tiny_copy(config)
    if small is not None and group != "decoder":
        require_trained_on_text(config, small)
    if group == "classifier":
        return _classifier(config, spec, small)
    if small is None:
        why = (
            "no tiny copy of it could be made: the loss is of the model's own logits, and answers come without a cache"
        )
        return replace(spec, kind=group, plain=True, caching="none", pads_left=False, rewinds=False, unknown=(why,))
    if group == "decoder":
        spec = marked(config, spec, small)
    spec = _with_reach(replace(spec, kind=group, spare_positions=_spare_positions(small)), small)
    spec = _told_apart(_with_head(replace(spec, packs_experts=packs_experts(small, spec)), small), small)
    if tried(_has_another_loss, small):
        spec = replace(spec, unknown=(*spec.unknown, "its own loss is another: here it is that of each next token"))
    if group == "decoder":
        spec = _while_writing(spec, small)
    return replace(spec, packs=group == "decoder" and not spec.plain and tried(_rows_stay_apart, small))


def _require_vocabulary(config: PreTrainedConfig) -> None:
    if whole_number(config, "vocab_size") is None:
        message = f"model type {config.model_type!r} reads no tokens of a vocabulary: its config has no vocab_size"
        raise ModelError(message, key="model.name_or_path", remedy="Choose another model.")


def _with_reach(spec: ModelSpec, model: PreTrainedModel) -> ModelSpec:
    """The facts with the modules that no gradient reaches, if the experiment can be made."""
    given = text_read(model)
    try:
        return replace(spec, unreached=unreached(model, spec, given))
    except Exception:  # whatever an architecture refuses: all its modules are then adapted
        return spec


def _told_apart(spec: ModelSpec, model: PreTrainedModel) -> ModelSpec:
    """The facts with whether rows can be padded on the right."""
    if tried(_ignores_right_padding, model):
        return spec
    why = "what stands behind a row changes what is made of it, so each row is read by itself"
    return replace(spec, alone=True, unknown=(*spec.unknown, why))


def _has_another_loss(model: PreTrainedModel) -> bool:
    """Whether its loss is not the likelihood that its logits give the next token: that of several, say."""
    if getattr(model.config.get_text_config(), "output_router_logits", False):  # which adds that of routers
        return False
    row, said = random_row(model), random_row(model, SHORT)
    if model.config.is_encoder_decoder:
        found = model(input_ids=row, labels=said, use_cache=False)
        logits = found.logits[0]
    else:
        found, said = model(input_ids=row, labels=row, use_cache=False), row[:, 1:]
        logits = found.logits[0, :-1]
    return not torch.isclose(found.loss, nn.functional.cross_entropy(logits, said[0]), rtol=CLOSE).item()


def _ignores_right_padding(model: PreTrainedModel) -> bool:
    given = _given(model)
    longer = {name: nn.functional.pad(each, (0, 4)) for name, each in given.items()}
    one, other = (model(**each, use_cache=False).logits for each in (given, longer))
    return agree(one, other[:, : one.shape[1]])


def _given(model: PreTrainedModel) -> dict[str, Any]:
    """A row that a forward reads; of an encoder-decoder its mask too, and what the decoder reads."""
    row = random_row(model)
    if not model.config.is_encoder_decoder:
        return {"input_ids": row}
    read = decoder_inputs(model, random_row(model, SHORT))
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "decoder_input_ids": read}


def _with_head(spec: ModelSpec, model: PreTrainedModel) -> ModelSpec:
    """The facts with what stands around the head, if hidden states and the head give the logits of the model."""
    for softcap, multiplier, divisor, flag in _around_heads(model.config.get_text_config()):
        found = replace(spec, final_softcap=softcap, logit_multiplier=multiplier, logit_divisor=divisor, scales_if=flag)
        if tried(_gives_the_logits, found, model):
            return found
    return replace(spec, plain=True, unknown=("the loss is computed from the model's own logits",))


def _around_heads(config: PreTrainedConfig) -> Iterator[tuple[str | None, ...]]:
    """What may act on the logits, by the config's attributes: soft cap, multiplier, divisor, flag; none first."""
    return product(
        *(
            [None, *(name for name in names if isinstance(getattr(config, name, None), int | float))]
            for names in (SOFTCAPS, MULTIPLIERS, DIVISORS, FLAGS)
        )
    )


def _gives_the_logits(spec: ModelSpec, model: PreTrainedModel) -> bool:
    given = _given(model)
    states = text_states(model, **given) if spec.kind == "decoder" else pair_states(model, *given.values())
    return agree(head_of(model, spec).logits(states), model(**given).logits)


def _while_writing(spec: ModelSpec, model: PreTrainedModel) -> ModelSpec:
    """The facts with how the model keeps what it has read, and whether rows may be padded on the left."""
    forms: tuple[Caching, ...] = ("keys", "own")
    caching: Caching = next((form for form in forms if tried(_goes_on, model, form)), "none")
    lack = ("no cache of it works: all is read again with each token",) if caching == "none" else ()
    return replace(
        spec,
        caching=caching,
        pads_left=tried(_ignores_left_padding, model),
        rewinds=caching == "keys" and tried(_goes_back, model),
        unknown=(*spec.unknown, *lack),
    )


def _goes_on(model: PreTrainedModel, form: Caching) -> bool:
    """Whether reading a row in two parts gives what reading it at once does."""
    row, cache = random_row(model), new_cache(model) if form == "keys" else None
    whole = model(input_ids=row, use_cache=False).logits[:, -1]
    state = read_on(model, cache, input_ids=row[:, :-3])
    for place in range(row.shape[1] - 3, row.shape[1]):
        state = read_on(model, state.cache, input_ids=row[:, place : place + 1])
    return agree(whole, state.logits[:, -1])


def _goes_back(model: PreTrainedModel) -> bool:
    """Whether what was read can be cut back to an earlier point."""
    row, cache = random_row(model), new_cache(model, rewinds=True)
    whole = model(input_ids=row, use_cache=False).logits[:, -1]
    read_on(model, cache, input_ids=torch.cat([row[:, :-1], row[:, :3]], dim=1))
    cache.crop(-3)
    return agree(whole, read_on(model, cache, input_ids=row[:, -1:]).logits[:, -1])


def _ignores_left_padding(model: PreTrainedModel) -> bool:
    row = random_row(model, SHORT)
    ids, mask = nn.functional.pad(row, (3, 0), value=1), nn.functional.pad(torch.ones_like(row), (3, 0))
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_(min=0)
    return agree(model(input_ids=row).logits[:, -1], model(**given).logits[:, -1])


def _rows_stay_apart(model: PreTrainedModel) -> bool:
    """Whether rows laid end to end give what each gives alone; the model attends to rows from here on.

    Together they are longer than one row may be: there are models whose masks are no longer.
    """
    most = configured_positions(model.config)
    lengths = TOGETHER * (1 if most is None or most > LONGEST else most // sum(TOGETHER) + 1)
    rows = [random_row(model, length) for length in lengths]
    alone = torch.cat([text_states(model, input_ids=row)[0] for row in rows])
    model.set_attn_implementation(ROWS)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    first_token = torch.zeros(1, sum(lengths), dtype=torch.long)
    first_token[0, 0] = 1
    together, changed = (
        text_states(model, input_ids=ids, position_ids=positions, row_lengths=lengths)[0]
        for ids in (torch.cat(rows, dim=1), torch.cat(rows, dim=1) - first_token)
    )
    first = lengths[0]
    return (
        agree(alone, together)
        and agree(together[first:], changed[first:])
        and not agree(together[:first], changed[:first])
    )


def _classifier(config: PreTrainedConfig, spec: ModelSpec, small: PreTrainedModel | None) -> ModelSpec:
    """The facts of a classifier: its head, and whether it decides at the last token of a row."""
    model = small if small is not None else meta_model(config)
    spec = replace(spec, classifier=_head_modules(model), kind="encoder")
    if small is None:
        return replace(spec, plain=True, unknown=("no tiny copy of it could be made to try it on",))
    spec = _with_reach(replace(spec, spare_positions=_spare_positions(small)), small)
    causal = replace(spec, kind="decoder")
    if tried(_decides_last, causal, small):
        return causal
    if tried(_ignores_padding, spec, small):
        return spec
    return replace(spec, alone=True, unknown=("padding changes what it decides, so each row is read by itself",))


def _spare_positions(model: PreTrainedModel) -> int:
    """How many of the configured positions no token takes: the first that no row can do without."""
    most = configured_positions(model.config)
    if most is None or most > LONGEST:
        return 0
    takes = (spare for spare in range(MOST_SPARE + 1) if tried(_reads, model, most - spare))
    return next(takes, 0)


def _reads(model: PreTrainedModel, length: int) -> bool:
    model(**text_read(model, length))
    return True


def _head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules with weights beside the base model, and its pooler; the one that gives the scores last."""
    with_weights = sized_modules(model)
    beside = [
        name for name, module in model.named_children() if name in with_weights and module is not model.base_model
    ]
    poolers = [name for name in with_weights if name.endswith("pooler")]
    inside = [name for name in poolers if not is_within(name, *beside)]
    scores = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    beside = beside or scores[-1:]
    beside.sort(key=lambda name: any(is_within(score, name) for score in scores))
    return (*inside, *beside)


def _decides_last(spec: ModelSpec, model: PreTrainedModel) -> bool:
    row = random_row(model, SHORT)
    model.config.pad_token_id = 0  # transformers finds the last token of a row by it
    mask = torch.ones_like(row)
    other_end = torch.cat([row[:, :-1], row[:, :1]], dim=1)
    one, other = (text_states(model, input_ids=ids) for ids in (row, other_end))
    causal = agree(one[:, :-1], other[:, :-1])
    return causal and agree(class_logits(model, spec, row, mask), model(input_ids=row, attention_mask=mask).logits)


def _ignores_padding(spec: ModelSpec, model: PreTrainedModel) -> bool:
    row = random_row(model, SHORT)
    padded = nn.functional.pad(row, (0, 4), value=model.config.pad_token_id or 0)
    mask = nn.functional.pad(torch.ones_like(row), (0, 4))
    alone = class_logits(model, spec, row, torch.ones_like(row))
    return agree(alone, class_logits(model, spec, padded, mask))
