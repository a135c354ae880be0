"""Tokens one by one."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

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


def test_each_token_tells_its_bytes_a_part_of_a_character_too() -> None:
    text = "é late 😀 the\n"
    pieces = Pieces(TOKENIZER)
    told = [pieces.utf8(token_id) for token_id in TOKENIZER(text)["input_ids"]]
    assert b"".join(each for each in told if each is not None).decode() == text
    assert max(map(len, filter(None, told))) > 1, "not every token is a byte"


def test_bytes_that_stand_for_themselves_tell_them() -> None:
    """As in the vocabularies of SentencePiece."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE({"a": 0, "é": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}, []))
    )
    tokenizer.backend_tokenizer.decoder = ByteFallback()
    pieces = Pieces(tokenizer)
    assert [pieces.utf8(token_id) for token_id in (0, 1, 2 + 0xF0, 2 + 0x41)] == [b"a", "é".encode(), b"\xf0", b"A"]
