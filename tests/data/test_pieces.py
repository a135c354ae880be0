"""Tokens one by one."""

from __future__ import annotations

from loraft.data.pieces import Pieces
from tests.generation.test_engine import TOKENIZER


def test_pieces_are_as_they_stand_inside_a_text() -> None:
    pieces = Pieces(TOKENIZER)
    spelled = [piece.text for piece in pieces.all(TOKENIZER("the order is\n late é<|im_end|>")["input_ids"])]
    assert "".join(spelled).startswith("the order is\n late ")
    assert spelled[-1] == "<|im_end|>"
    assert all("\N{REPLACEMENT CHARACTER}" not in text for text in spelled), "half a character has its name"
    assert pieces.of(319).text == "<319>"
