"""Rows of embeddings that are trained by themselves, for tokens that are new: peft's `trainable_token_indices`.

Where the head is tied to the embeddings one row serves both; otherwise the head has rows of its own, trained too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel
from peft.utils import TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from loraft.adapters.adapter_config import ADAPTER_CONFIG
from loraft.adapters.adapter_files import AdapterFiles
from loraft.adapters.lora_factors import ADAPTER_NAME
from loraft.errors import AdapterError, Problem
from loraft.models.model_structure import TOKENS_KEY, mean_row, tables_of
from loraft.models.modules import is_within, modules_of, output_head

Rows = Mapping[str, tuple[int, ...]]
"""Which rows of which modules, by their full names."""
WHOLE = "Write method: full, which trains every row, or add no tokens."


def token_rows_in(model: PreTrainedModel, tokens: Sequence[int], trained: Sequence[str]) -> Rows:
    """The rows of a model that `tokens` have; `trained` are the modules that the adapter trains otherwise.

    Raises:
        AdapterError: An embedding or a head whose rows peft does not train as the model computes with them.
    """
    if not tokens:
        return {}
    if problems := list(_not_trainable(model, trained)):
        raise AdapterError.several(problems)
    return dict.fromkeys(tables_of(model), tuple(tokens))


def _not_trainable(model: PreTrainedModel, trained: Sequence[str]) -> Iterator[Problem]:
    head = output_head(model)
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        yield Problem(f"the embeddings of a {type(model).__name__} are no plain table", None, TOKENS_KEY, WHOLE)
    if head is not None and not isinstance(head, nn.Linear):
        yield Problem(f"the head of a {type(model).__name__} is no plain linear module", None, TOKENS_KEY, WHOLE)
    elif head is not None and head.bias is not None:
        yield Problem(
            "the head has a bias, which peft leaves out where rows of it are trained", None, TOKENS_KEY, WHOLE
        )
    for name, table in tables_of(model).items():
        source = model.all_tied_weights_keys.get(f"{name}.weight")
        if source is not None and model.get_parameter(source) is table:
            yield Problem(_apart(name, source), None, TOKENS_KEY, WHOLE)
        if any(is_within(name, each) or is_within(each, name) for each in trained):
            message = f"{name} is trained by the section lora already"
            yield Problem(
                message, None, TOKENS_KEY, "Leave it out there: of it the rows of the new tokens are trained."
            )


def _apart(name: str, other: str) -> str:
    """Why a table cannot be had whose weight another module has, which peft leaves as it is."""
    return f"peft trains rows of {name} apart from {other}, which has the same weight"


def as_indices(rows: Rows, everything: Sequence[str]) -> list[int] | dict[str, list[int]] | None:
    """The rows in peft's words: a list is of the embeddings, and of a head that is tied to them.

    peft compares the ends of names, so that the last part alone does where no other module ends so.
    """
    if len(rows) < 2:
        return next((list(tokens) for tokens in rows.values()), None)
    short = {name: name.rpartition(".")[2] for name in rows}
    alone = {name: sum(each.endswith(last) for each in everything) == 1 for name, last in short.items()}
    return {short[name] if alone[name] else name: list(tokens) for name, tokens in rows.items()}


def begin_rows(model: PeftModel, rows: Rows) -> None:
    """Let the rows of new tokens be the mean of all rows before them, of each table by itself."""
    base = model.get_base_model()
    for name, tokens in rows.items():
        adapter: Any = base.get_submodule(name).token_adapter
        adapter.trainable_tokens_delta[ADAPTER_NAME].data.copy_(mean_row(adapter.base_layer.weight, min(tokens)))


def refuse_loose_rows(model: PeftModel, rows: Rows) -> None:
    """Compare what peft trains with what was chosen: every module with the weight of a table must see its new rows.

    Raises:
        AdapterError: peft leaves a module of such a weight as it is, and the model computes with that.
    """
    base = model.get_base_model()
    for name in rows:
        wrapper: Any = base.get_submodule(name)
        table, parameters = wrapper.token_adapter.base_layer.weight, base.named_parameters(remove_duplicate=False)
        loose = [path for path, weight in parameters if weight is table and ".token_adapter." not in path]
        if loose:
            raise AdapterError(_apart(name, loose[0]), key=TOKENS_KEY, remedy=WHOLE)


def refuse_untrained_rows(files: AdapterFiles, model: PreTrainedModel, own_rows: int | None) -> None:
    """What the base has no row for must be in the adapter, for each table of the base, which has `own_rows`.

    Raises:
        AdapterError: A table has rows that neither has; in training they were random numbers.
    """
    last = max((max(rows, default=-1) for rows, _ in files.tokens.values()), default=-1)
    if own_rows is None or last < own_rows:
        return
    for name in tables_of(model):
        trained = files.tokens.get(f"{name}.weight", ((), None))[0]
        if lacking := sorted(set(range(own_rows, last + 1)).difference(trained)):
            message = f"neither it nor its base has row {lacking[0]} of {name}, which has {own_rows} rows"
            where = str(files.folder / ADAPTER_CONFIG)
            raise AdapterError(message, where=where, key="trainable_token_indices")


def wrapped_rows(model: PeftModel) -> set[str]:
    """The modules of which peft trains rows by themselves, those that follow another left out."""
    wrappers = modules_of(model.get_base_model(), TrainableTokensWrapper)
    return {name for name, module in wrappers.items() if module.token_adapter.tied_adapter is None}
