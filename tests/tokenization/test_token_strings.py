"""Tokens one by one."""

from __future__ import annotations

from loraft.tokenization.boundaries import Pieces
from tests.inference.test_engine import TOKENIZER


def test_pieces_are_as_they_stand_inside_a_text() -> None:
    pieces = Pieces(TOKENIZER)
    spelled = [piece.text for piece in pieces.all(TOKENIZER("the order is\n late é<|im_end|>")["input_ids"])]
    assert "".join(spelled).startswith("the order is\n late ")
    assert spelled[-1] == "<|im_end|>"
    assert all("\N{REPLACEMENT CHARACTER}" not in text for text in spelled), "half a character has its name"
    assert pieces.of(319).text == "<319>"


def test_a_character_of_several_tokens_stands_with_the_first_of_them() -> None:
    ids = TOKENIZER("é late 😀 the")["input_ids"]
    spelled = Pieces(TOKENIZER).row(ids)
    assert len(spelled) == len(ids)
    assert "".join(spelled) == "é late 😀 the"
    smiling = spelled.index("😀")
    assert spelled[smiling : smiling + 5] == ["😀", "", "", "", " the"]


def test_what_never_becomes_a_character_has_its_name() -> None:
    half = TOKENIZER("😀")["input_ids"][:2]
    assert all("\N{REPLACEMENT CHARACTER}" not in text and text for text in Pieces(TOKENIZER).row(half))
