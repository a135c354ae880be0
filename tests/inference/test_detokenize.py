"""Text as it comes is the text as a whole, for tokenizers of each kind."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraft.inference.completion import Detokenizer, StopStringMatcher
from tests.tiny import tiny_tokenizer

TEXTS = (
    "The answer is in the text.",
    "  two spaces,\n\n\ttabs and trailing ones  ",
    "naïve café — “quoted” …",
    "日本語の文章と 한국어 and 中文。",
    "flags 🇫🇷, a family 👨‍👩‍👧‍👦, skin 👍🏽!",
    "a lone \N{REPLACEMENT CHARACTER} that is meant, and one more \N{REPLACEMENT CHARACTER}",
    "don't , can not . he 's",
    "",
)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way, as in Llama 2: words start with ▁, and what is no piece is spelled in bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁text", "▁a", *"abcdefghinorstwxy,.!"]
    merges = [
        ("▁", "a"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁t", "e"), ("▁te", "x"), ("▁tex", "t"),
    ]  # fmt: skip
    pieces += [left + right for left, right in merges if left + right not in pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece: pieces inside a word start with ##, and words are joined by spaces."""
    words = ["[UNK]", "the", "answer", "text", "##s", "##.", "is", "in", "."]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


KINDS = {"bytes": tiny_tokenizer, "byte fallback": byte_fallback_tokenizer, "words": word_tokenizer}


def whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_make_up_the_whole(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids)


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
def test_a_character_comes_whole_or_not_at_all(kind: str) -> None:
    tokenizer = KINDS[kind]()
    given = pieces(tokenizer, tokenizer("x👍日", add_special_tokens=False)["input_ids"])
    assert [piece for piece in given if piece] == ["x", "👍", "日"]


def test_spaces_are_kept_inside_the_text_and_dropped_where_the_tokenizer_drops_them() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = tokenizer("the text a", add_special_tokens=False)["input_ids"]
    assert pieces(tokenizer, ids) == ["the", " text", " a", ""]


def test_special_tokens_are_skipped_and_break_nothing() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the <|im_start|> answer<|im_start|>", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids) == "the  answer"


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
def test_an_end_inside_a_character_shows_it_as_broken_and_spares_those_before(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer("日👍", add_special_tokens=False)["input_ids"][:-1]
    given = "".join(pieces(tokenizer, ids))
    assert given.startswith("日")
    assert given.strip("日") == "\N{REPLACEMENT CHARACTER}" * len(given.strip("日")) != ""


def test_a_broken_byte_in_the_middle_is_given_up_on() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["▁a", "<0xE6>", "▁text"])
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids) == "a\N{REPLACEMENT CHARACTER} text"


def let_through(stops: list[str], *pieces: str) -> tuple[list[str], str | None]:
    """What comes out after each piece and, where no stop text came, at the end."""
    end = StopStringMatcher(stops)
    out = []
    for piece in pieces:
        out.append(end.add(piece))
        if end.found:
            return out, end.found
    return [*out, end.flush()], None


def test_a_stop_text_over_several_pieces_is_never_let_through() -> None:
    assert let_through(["\n\nUser:"], "Yes.\n", "\nUs", "er", ": no") == (["Yes.", "", "", ""], "\n\nUser:")


def test_what_only_began_as_a_stop_text_comes_later() -> None:
    assert let_through(["<end>"], "a <e", "nd", " of") == (["a ", "", "<end of", ""], None)
    assert let_through(["<end>"], "a <e") == (["a ", "<e"], None)


def test_a_beginning_within_a_beginning_is_held() -> None:
    assert let_through(["aab"], "a", "a", "a", "b!") == (["", "", "a", ""], "aab")


def test_the_first_of_several_stop_texts_ends_the_text() -> None:
    assert let_through(["x", "two"], "one two x") == (["one "], "two")
    assert let_through([], "one") == (["one", ""], None)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_smollm2(smollm2: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids) == text
