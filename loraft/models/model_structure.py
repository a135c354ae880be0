"""How a model is built: its row of the table of architectures, its layers, which weights its modules own, its tokens.

A table of embeddings may have spare rows behind the last token. Where new tokens (`model.add_tokens`) need more it
grows, and what is grown begins as the mean of the rows that were there.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from loraft.errors import ModelError, Problem, first_line
from loraft.models.hf_config import is_used_otherwise, quietly, whole_number
from loraft.models.modules import embedding_weight, is_within, linear_modules, matches, output_head
from loraft.models.registry import FAMILIES, Kind, ModelSpec


def family_in(model: PreTrainedModel) -> ModelSpec:
    """The row of the table for this model, with its layers where this class of it has them.

    The table says where the model with its head has them: a bare model lacks the first part of that path. A family
    that the table does not have is known by its structure alone: where its layers are, and not what they are made of.

    Raises:
        ModelError: No list of layers is found.
    """
    row = FAMILIES.get(model.config.model_type)
    if row is None or is_used_otherwise(model.config):
        return by_structure(model)
    here = {name for name, _ in model.named_modules()}
    paths = {path: path if path in here else path.partition(".")[2] for path in row.stacks.values()}
    for path in paths.values():
        if path not in here or not list(model.get_submodule(path).children()):
            raise _no_layers(model, path)
    encoder = paths[row.encoder_path] if row.encoder_path is not None else None
    return replace(row, layers_path=paths[row.layers_path], encoder_path=encoder)


def depths(model: nn.Module, stacks: Mapping[str, str]) -> Mapping[str, int]:
    """How many layers each stack of the model has, by the paths of these.

    Raises:
        ModelError: One has none.
    """
    found = {stack: len(list(model.get_submodule(path).children())) for stack, path in stacks.items()}
    for stack, path in stacks.items():
        if not found[stack]:
            raise _no_layers(model, path)
    return found


def _no_layers(model: nn.Module, path: str) -> ModelError:
    message, remedy = f"a {type(model).__name__} of this config has no layers at {path}", "Look at its config.json."
    return ModelError(message, key="model.name_or_path", remedy=remedy)


def placed_layers(model: nn.Module, stacks: Mapping[str, str]) -> Iterator[tuple[tuple[str, int], nn.Module]]:
    """The layers of all stacks of the model, an encoder's before a decoder's; each with its stack and number there."""
    for stack, path in stacks.items():
        for number, layer in enumerate(model.get_submodule(path).children()):
            yield (stack, number), layer


def layers_of(model: nn.Module, family: ModelSpec) -> list[nn.Module]:
    """The layers of all stacks of the model, likewise."""
    return [layer for _, layer in placed_layers(model, family.stacks)]


def ends_of(model: PreTrainedModel) -> tuple[nn.Module, nn.Module, nn.Module] | None:
    """The embeddings, the head that is not tied to them, and the module between; None where a model is not made so."""
    between: nn.Module = model.base_model
    embeddings, head = model.get_input_embeddings(), output_head(model)
    if between is model or not isinstance(embeddings, nn.Embedding) or type(head) is not nn.Linear:
        return None
    inside = set(between.modules())
    if embeddings not in inside or head in inside or head.weight is embeddings.weight:
        return None
    return embeddings, head, between


def by_structure(model: PreTrainedModel) -> ModelSpec:
    """A row for a model that the table lacks: its largest lists of layers that hold linear modules.

    Of a model that reads images or sound too, only the part that reads text is looked at.

    Raises:
        ModelError: No list of layers is found.
    """
    stack, prefix = _text_part(model)
    lists = {f"{prefix}{name}": size for name, size in _lists_of_layers(stack).items()}
    found = {name: size for name, size in lists.items() if not OTHER_SENSES.search(name)} or lists
    largest = sorted(found, key=lambda name: -found[name])
    model_type = model.config.model_type
    if not largest:
        message = f"model type {model_type!r} has no list of layers that all hold linear modules, which LoRA adapts"
        raise ModelError(message, key="model.name_or_path", remedy="Choose another model.")
    encoder = next((name for name in largest if "encoder" in name), None)
    decoder = next((name for name in largest if "decoder" in name), None)
    kind: Kind = "decoder" if model.can_generate() or "ForCausalLM" in type(model).__name__ else "encoder"
    if model.config.is_encoder_decoder and encoder and decoder:
        kind, path = "encoder_decoder", decoder
    else:
        encoder, path = None, largest[0]
    paths = [each for each in (encoder, path) if each is not None]
    attention, mlp, routers = _parts_of_layers(model, paths)
    experts = _experts(model, path)
    return ModelSpec(
        model_type, path, attention, mlp, kind, encoder, classifier=(), experts=experts, routers=routers, packs=False,
        same_input=(),
    )  # fmt: skip


def _text_part(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The model itself, or its language model where it has one beside others; and the path before the names in it."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("language_model", "text_model") and isinstance(module, PreTrainedModel):
            return module, f"{name}."
    return model, ""


def _lists_of_layers(model: nn.Module) -> dict[str, int]:
    """The outermost lists of modules that all hold linear modules, and how many numbers each has."""
    sizes = sized_modules(model)
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not is_within(name, *found) and all(map(linear_modules, module)):
            found[name] = sizes.get(name, 0)
    return {name: size for name, size in found.items() if size}


OTHER_SENSES = re.compile(r"vision|visual|audio|image|speech|tower|embed_tokens")
"""Words in the paths of layers that read images and sound."""
OF_ATTENTION = re.compile(r"attn|attention")
OF_MIXERS = re.compile(r"mamba|mixer|ssm|conv|recurrent|rglru|time_mix|linear_attn")
"""Words in the paths of modules that mix tokens in another way than attention: neither it nor the feed-forward part."""
ROUTERS = re.compile(r"(^|\.)(gate|router|shared_expert_gate|router\.\w+|gate\.\w+)$")


def _parts_of_layers(
    model: PreTrainedModel, paths: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The linear modules inside the layers by what they belong to: attention, feed-forward part, routers of experts."""
    inside: dict[str, tuple[int, int]] = {}
    for path in paths:
        for layer in model.get_submodule(path).children():
            inside |= linear_modules(layer)
    count = whole_number(model.config, "num_experts", "num_local_experts", "n_routed_experts", least=2)
    routers = tuple(name for name, (_, out) in inside.items() if ROUTERS.search(name) and out in (1, count))
    rest = [name for name in inside if name not in routers and not OF_MIXERS.search(name)]
    attention = tuple(name for name in rest if OF_ATTENTION.search(name))
    return attention, tuple(name for name in rest if name not in attention), routers


def _experts(model: nn.Module, path: str) -> str | None:
    """Where the layers at `path` keep experts: a module with a matrix for each of them in one tensor."""
    found = (name for layer in model.get_submodule(path).children() for name in expert_tensors(layer))
    return next((name.rpartition(".")[0] for name in found), None)


def stacks_experts(parameter: str, shape: Sequence[int]) -> bool:
    """Whether a parameter holds a matrix for each expert of a mixture."""
    return len(shape) == 3 and "expert" in parameter.rpartition(".")[0]


def expert_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that hold a matrix for each expert, by their full names."""
    return {name: weight for name, weight in model.named_parameters() if stacks_experts(name, weight.shape)}


def sized_modules(model: nn.Module) -> dict[str, int]:
    """Full name of each module that has parameters: how many, those of its children included."""
    sizes = {name: sum(weight.numel() for weight in module.parameters()) for name, module in model.named_modules()}
    return {name: size for name, size in sizes.items() if name and size}


def tied_modules(model: nn.Module) -> tuple[str, ...]:
    """The modules that share a weight with another, such as the embedding and the head."""
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            owners[id(weight)].append(name)
    return tuple(name for names in owners.values() if len(names) > 1 for name in names)


def feed_forward_parts(model: nn.Module, family: ModelSpec) -> dict[str, nn.Module]:
    """The modules that are a layer's whole feed-forward part and read a token by itself, by their full names.

    Such a module takes the hidden states alone and holds the part's linear modules, activations and dropout: no router,
    whose load is a matter of all tokens, and nothing else with numbers. Of types that the table does not have, and
    where the part is no module of its own, there are none.
    """
    found: dict[str, nn.Module] = {}
    if family.model_type not in FAMILIES or not family.mlp:
        return found
    for path in family.stacks.values():
        for place, layer in model.get_submodule(path).named_children():
            inside = (name for name in linear_modules(layer) if matches(name, *family.mlp))
            outer = {name.rpartition(".")[0] for name in inside if not matches(name, *family.attention)}
            if len(outer) == 1 and (name := outer.pop()) and _reads_a_token_alone(part := layer.get_submodule(name)):
                found[f"{path}.{place}.{name}"] = part
    return found


def _reads_a_token_alone(part: nn.Module) -> bool:
    required = [one for one in inspect.signature(part.forward).parameters.values() if one.default is one.empty]
    numbers = {name.rpartition(".")[0] for name in (*dict(part.named_parameters()), *dict(part.named_buffers()))}
    return len(required) == 1 and numbers == set(linear_modules(part))


TOKENS_KEY = "model.add_tokens"
ROWS_AT_ONCE = 4096


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    """Give a tokenizer new tokens, which are found in any text and shown in answers.

    Raises:
        ModelError: A token that is there already, or that the tokenizer does not find in a text; all such are named.
    """
    if problems := list(_not_new(tokenizer, tokens)):
        raise ModelError.several(problems)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    for token, number in zip(tokens, ids_of(tokenizer, tokens), strict=True):
        if number not in tokenizer(f"a {token} b", add_special_tokens=False, verbose=False)["input_ids"]:
            raise ModelError(
                f"the tokenizer does not find {token!r} in a text", key=TOKENS_KEY, remedy="Spell it otherwise."
            )


def ids_of(tokenizer: Tokenizer, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of tokens that a tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[token] for token in tokens)


def _not_new(tokenizer: Tokenizer, tokens: Sequence[str]) -> Iterator[Problem]:
    known = tokenizer.get_vocab()
    for token in dict.fromkeys(tokens):
        if not token.strip() or token != token.strip():
            yield Problem(
                f"{token!r} begins or ends with a space, or is nothing else", None, TOKENS_KEY, "Leave spaces out."
            )
        elif token in known:
            message = f"{token!r} is a token of the model already, with id {known[token]}"
            yield Problem(message, None, TOKENS_KEY, "Leave it out: its row is the base's.")
        elif tokens.count(token) > 1:
            yield Problem(f"{token!r} is named {tokens.count(token)} times", None, TOKENS_KEY, "Name it once.")


def grow(model: PreTrainedModel, tokens: Sequence[int]) -> int:
    """Let a model have embeddings, and logits, for all `tokens`; those that are new are the mean of the others.

    On the meta device the sizes alone grow. How many there were comes back.

    Raises:
        ModelError: An architecture whose embeddings do not grow, or a row between that none of the tokens has.
    """
    before, rows = len(embedding_weight(model)), max(tokens, default=-1) + 1
    if rows <= before:
        return before
    if rows - before > len({token for token in tokens if token >= before}):
        raise _does_not_grow(
            model, f"it has {before}, and not all between these and that of token {rows - 1} are known"
        )
    with quietly(), torch.random.fork_rng(devices=[]):  # transformers draws what is replaced below
        try:
            model.resize_token_embeddings(rows, mean_resizing=False)
        except Exception as error:  # what an architecture raises that cannot has no common root
            raise _does_not_grow(model, first_line(error)) from error
    tables = tables_of(model)
    if any(len(table) != rows for table in tables.values()):
        raise _does_not_grow(model, "its tables have other sizes afterwards")
    for table in tables.values():
        if table.device.type != "meta":
            begin_at_mean(table.data, range(before, rows), before)
    return before


def _does_not_grow(model: PreTrainedModel, why: str) -> ModelError:
    message = f"the embeddings of a {type(model).__name__} do not grow: {why}"
    return ModelError(message, key=TOKENS_KEY, remedy="Add as many tokens as there are spare rows, or none.")


def tables_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tables with a row for each token, `[rows, width]`, by their modules: the embeddings and an untied head."""
    embedding, head = model.get_input_embeddings(), output_head(model)
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    if id(embedding) not in names:  # a Perceiver's
        return {}
    found: dict[str, Tensor] = {names[id(embedding)]: embedding_weight(model)}
    if isinstance(head, nn.Linear) and head.weight is not embedding_weight(model):
        found[names[id(head)]] = head.weight
    return found


def begin_at_mean(table: Tensor, rows: Sequence[int], known: int) -> None:
    """Let some rows of a table be the mean of its first `known` ones."""
    table[list(rows)] = mean_row(table, known).to(table.dtype)


def mean_row(table: Tensor, known: int) -> Tensor:
    """The mean of the first `known` rows of `[rows, width]`: `[width]`, in float32."""
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for start in range(0, known, ROWS_AT_ONCE):
        total += table[start : min(start + ROWS_AT_ONCE, known)].double().sum(0)
    return (total / known).float()
