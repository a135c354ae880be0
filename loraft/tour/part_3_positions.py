"""Part 3: how a model knows which token stands where."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loraft.tour.screens import DECODER, ENCODER, Document, Fact, Part, Screen, Shown, bare_name


def _of_each(models: Sequence[Document], said: Callable[[Document], str]) -> str:
    return "; ".join(f"{bare_name(each)}: {said(each['position_encoding'])}" for each in models)


def _kind(*models: Document) -> str:
    return _of_each(models, lambda found: found["kind"].replace("_", " "))


def _limit(*models: Document) -> str:
    return _of_each(models, lambda found: f"{found['limit']:,} positions" if found["limit"] else "no table")


def _applied(*models: Document) -> str:
    return _of_each(models, lambda found: found["applied"])


def _table(model: Document) -> str:
    tables = model["position_encoding"]["tables"]
    return ", ".join(f"{each['name']}, {each['shape'][0]} distances × {each['shape'][1]} heads" for each in tables)


POSITIONS = Part(
    "Positions",
    (
        Screen(
            "Attention alone does not see order: it weighs a set. BERT and GPT-2 add a vector for the position to each "
            "token's embedding, once, in front of the first layer. What follows is found by experiment: a small copy "
            "of each model reads one token again and again, and what differs can only be the position.",
            (
                Shown(f"inspect-layers {ENCODER}", only=("positions",)),
                Shown("inspect-layers gpt2", only=("positions",)),
                Shown("inspect-layers marian", only=("positions",)),
            ),
            (
                Fact("sinusoidal: BERT, GPT-2", "both learn theirs; sinusoidal: the 2017 Transformer, Marian", _kind),
                Fact("", "a learned table is a hard limit on length (BERT 512, GPT-2 1,024)", _limit),
            ),
        ),
        Screen(
            "Llama and most models since add nothing: in every layer they turn each query and each key by an angle "
            "that grows with its position, so that their product depends on the distance between the two.",
            (Shown(f"inspect-layers {DECODER}", only=("positions",)),),
            (
                Fact("positions are added to the embeddings", "only with learned or sinusoidal positions", _applied),
                Fact("rotary: GPT-3", "GPT-3 learns; rotary: GPT-J, GPT-NeoX, Llama, Mistral, Qwen", _kind),
            ),
        ),
        Screen(
            "T5 leaves embeddings, queries and keys alone: it adds a learned number to each score of attention, chosen "
            "by head and distance.",
            (Shown("inspect-layers t5-small", only=("positions",)),),
            (
                Fact(
                    "learned: T5",
                    "T5 adds a learned relative bias to the scores, a head each, one table that all layers of a stack "
                    "share (it lies in layer 0)",
                    _table,
                ),
                Fact(
                    "added once, before layer 1, never inside",
                    "rotary turns queries and keys (never values) in every layer; T5's bias and ALiBi act on every "
                    "layer's scores",
                    _applied,
                ),
            ),
        ),
    ),
)
