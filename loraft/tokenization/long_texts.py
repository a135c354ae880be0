"""Long texts as tokens, a piece at a time: the same tokens as in one go, in memory that the text's length does not set.

A tokenizer that is given many MB at once takes hundreds of bytes a character, and time that grows faster than the text.
So a long text is cut where no token can change, and read whole, up to `UNBROKEN` characters, where there is no place:

- at one space between a letter, or a mark of punctuation, and a letter, behind a line end, or behind the end of a
  Chinese sentence, where nothing is composed, stripped or collapsed;
- where no token of the vocabulary has such a place inside it, so that BPE and Unigram compose none across it;
- with tokenizers all of whose parts decide by characters beside each other;
- and where the characters around the cut give the same tokens at the same places in one go and in two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from loraft.errors import DataError

LONG = 65_536
"""Texts of more characters are read in pieces."""
UNBROKEN = 2_000_000
"""So many characters are tokenized in one go at most: half a GB."""
TOKENIZED_TOGETHER = 1000
"""Texts in one call of a tokenizer, which reads them in parallel."""
TOGETHER = 1_000_000
"""So many characters of several texts are tokenized in one call."""
PIECE = 8_000
"""Characters of a piece, about: tokenizers read shorter and longer ones more slowly."""
AT_ONCE = 64
"""Pieces that are tokenized in one call, in parallel."""
AROUND = 200
"""Characters on each side of a cut that the experiment reads."""

SPACES = (
    (r"(?<=[A-Za-z]) (?=[A-Za-z])", r"[A-Za-z][ ▁Ġ]"),
    (r"(?<=[.,;:!?)\]\"']) (?=[A-Za-z])", r"[.,;:!?)\]\"'][ ▁Ġ]"),
)
LINES = (
    (r"(?<=[^\s]\n)(?=[A-Za-z])", r"[\nĊ][A-Za-z]"),
    (r"(?<=[。！？])(?=[\u4e00-\u9fff])", r"(?:[。！？]|ãĢĤ|ï¼ģ|ï¼Ł)[\u4e00-\u9fffä-é]"),
)
"""Where a text may be cut, and which tokens have such a place inside them, also as byte-level vocabularies write it."""
LOCAL = {
    "BertNormalizer", "BertPreTokenizer", "ByteLevel", "Digits", "Lowercase", "Metaspace", "NFC", "NFD", "NFKC", "NFKD",
    "Nmt", "Precompiled", "Prepend", "Punctuation", "Replace", "Sequence", "Split", "Strip", "StripAccents",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
"""Normalizers and pre-tokenizers that decide by characters beside each other, their expressions aside."""
CLASS = re.compile(r"\[(?:\\.|[^\]\\])+\]")
FAR = re.compile(r"\(\?<[=!]|\\[bBAGzZ]|(?<!\\)[.^$]")
"""What in an expression looks further than beside: back, at the ends of the text, at any character there is."""
WORDS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
"""One of these stands before WordPiece and WordLevel, which know words and no neighbours."""

Span = tuple[int, int]
"""Characters `start … stop - 1` of a text."""


class ManyTokensError(Exception):
    """A text that cannot be cut, for the reason of `refusal`, and certainly has more tokens than were asked for."""

    def __init__(self, fewest: int, refusal: DataError) -> None:
        super().__init__(f"at least {fewest} tokens")
        self.fewest = fewest
        self.refusal = refusal


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """A text as tokens, and where in it each begins and ends.

    Attributes:
        offsets: Pairs, or an array `[tokens, 2]`; empty where they were not asked for.
    """

    ids: list[int]
    offsets: Any = ()


@dataclass(frozen=True, eq=False)
class LongTexts:
    """One way of a tokenizer from texts, however long, to tokens.

    Attributes:
        special: The tokenizer puts its special tokens around each text.
        offsets: Offsets are wanted.
        rough: Of long texts it is enough, and takes less time, that they tell special tokens from those of the text.
        target: The texts are targets, which some tokenizers mark otherwise.
        literal: Control tokens that are written in the texts are read as plain text.
    """

    tokenizer: PreTrainedTokenizerBase
    special: bool = True
    offsets: bool = False
    target: bool = False
    rough: bool = False
    literal: bool = False

    def read(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """
        long = replace(self, offsets=self.offsets and not self.rough)
        found: list[Tokens] = []
        for start, stop in calls([len(text) for text in texts]):
            if stop - start == 1 and len(texts[start]) > LONG:
                found.append(long._long(texts[start]))
            else:
                found += self._call(texts[start:stop], special=self.special)
        return found

    def beginning(self, text: str, most: int) -> str:
        """A beginning of a long text with more than `most` tokens, which are the text's first; else the text itself.

        Raises:
            ManyTokensError: The text cannot be cut, and is certain to have more than `most` tokens.
            DataError: The text is too long to be read whole, and cannot be cut.
        """
        if len(text) <= LONG:
            return text
        count = 0
        try:
            for pieces in self._pieces(text, at_once=-(-most * 4 // PIECE)):
                count += sum(len(tokens.ids) for tokens in self._call([text[a:b] for a, b in pieces], special=False))
                if count > most:
                    return text[: pieces[-1][1]]
        except DataError as error:
            fewest = len(text) // longest if (longest := _longest_token(self.tokenizer)) else 0
            if fewest > most:
                raise ManyTokensError(fewest, error) from None
            raise
        return text

    def _long(self, text: str) -> Tokens:
        before, after = self._around()
        ids, offsets = list(before), [np.zeros((len(before), 2), np.int32)]
        known: dict[int, int] = {}  # one object for each id: a number of Python's own takes four times its place
        for pieces in self._pieces(text):
            read = self._call([text[start:stop] for start, stop in pieces], special=False)
            for (start, _), tokens in zip(pieces, read, strict=True):
                ids.extend(map(known.setdefault, tokens.ids, tokens.ids))
                if self.offsets and tokens.ids:
                    offsets.append(_moved(tokens.offsets, start, text))
        ids += after
        if self.rough:  # special tokens are nowhere in the text, and all others somewhere
            rough = np.zeros((len(ids), 2), np.int8)
            rough[len(before) : len(ids) - len(after), 1] = 1
            return Tokens(ids, rough)
        return Tokens(ids, np.concatenate([*offsets, np.zeros((len(after), 2), np.int32)]) if self.offsets else ())

    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind every text."""
        if not self.special:
            return [], []
        ((alone,), (both,)) = (self._call(["a b"], special=special) for special in (False, True))
        count = len(alone.ids)
        start = next(start for start in range(len(both.ids)) if both.ids[start : start + count] == alone.ids)
        return both.ids[:start], both.ids[start + count :]

    def _call(self, texts: Sequence[str], *, special: bool) -> list[Tokens]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and not (self.offsets or self.target or special):
            # The tokenizer's own way, without the offsets and masks that transformers asks for each text.
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = self.literal
            return [Tokens(read.ids) for read in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        options: dict[str, Any] = {"return_offsets_mapping": True} if self.offsets else {}
        options |= {"text_target" if self.target else "text": list(texts), "add_special_tokens": special}
        read: Any = self.tokenizer(**options, split_special_tokens=self.literal, verbose=False)
        offsets = read["offset_mapping"] if self.offsets else [()] * len(texts)
        return [Tokens(*each) for each in zip(read["input_ids"], offsets, strict=True)]

    def _pieces(self, text: str, at_once: int = AT_ONCE) -> Iterator[list[Span]]:
        """The pieces of a text, some at a time; a space between two of them belongs to neither, or to the second."""
        cut = _cut_of(self.tokenizer)
        cuts = self._cuts(text, *cut, min(at_once, AT_ONCE)) if cut is not None else iter(())
        held: list[Span] = []
        start, characters = 0, 0
        for stop in chain(cuts, [len(text)]):
            if stop - start > UNBROKEN:
                unbroken = f"from character {start + 1:,} on no place in {UNBROKEN:,} where it can be cut"
                why = "without changing tokens: it would take too much memory to read"
                message = f"has {len(text):,} characters, and {unbroken} {why}"
                raise DataError(message, remedy="put spaces or line ends between words, or leave it out")
            if held and (len(held) >= at_once or characters + stop - start > TOGETHER):
                yield held
                held, characters = [], 0
            held.append((start, stop))
            characters += stop - start
            start = stop + (cut is not None and cut[1] and text[stop : stop + 1] == " ")
        yield held

    def _cuts(self, text: str, places: re.Pattern[str], skips: bool, at_once: int) -> Iterator[int]:
        """Where the text is cut, in order: at places far enough apart that pass the experiment."""

        def far_apart() -> Iterator[int]:
            at = 0
            while found := places.search(text, at + PIECE):
                at = found.start()
                yield at

        left = far_apart()
        while tried := list(islice(left, at_once)):
            yield from self._harmless(text, tried, skips)

    def _harmless(self, text: str, places: Sequence[int], skips: bool) -> list[int]:
        """The places whose two sides have, one after the other, the tokens that they have in one piece."""
        sides = [(max(place - AROUND, 0), place, place + (skips and text[place] == " ")) for place in places]
        spans = [span for base, stop, start in sides for span in ((base, stop), (start, start + AROUND))]
        whole = [(base, start + AROUND) for base, _, start in sides]
        read = self._call([text[a:b] for a, b in (*spans, *whole)], special=False)
        found = zip(places, sides, read[0 : len(spans) : 2], read[1 : len(spans) : 2], read[len(spans) :], strict=True)
        return [place for place, (base, _, start), *three in found if self._agree(text, base, start, *three)]

    def _agree(self, text: str, base: int, start: int, left: Tokens, right: Tokens, both: Tokens) -> bool:
        if left.ids + right.ids != both.ids or not (left.ids and right.ids):
            return False
        if not self.offsets:
            return True
        apart = np.concatenate([np.asarray(left.offsets, np.int32) + base, _moved(right.offsets, start, text)])
        return np.array_equal(apart, np.asarray(both.offsets, np.int32) + base)


def calls(sizes: Sequence[int]) -> Iterator[Span]:
    """Which texts, of so many characters each, are read in one call: few enough, short enough, and a long one alone."""
    start, characters = 0, 0
    for place, size in enumerate(sizes):
        full = place - start == TOKENIZED_TOGETHER or characters + size > TOGETHER
        if place > start and (full or size > LONG or sizes[place - 1] > LONG):
            yield start, place
            start, characters = place, 0
        characters += size
    if sizes:
        yield start, len(sizes)


def _moved(offsets: Any, start: int, text: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The offsets of a piece in its text; a space that was left out before it belongs to its first token."""
    moved = np.asarray(offsets, np.int32) + start
    moved[0, 0] -= text[start - 1 : start] == " "
    return moved


def require_readable(columns: Sequence[Sequence[str]]) -> None:
    """Refuse texts that would be read whole and are too long for that.

    Raises:
        DataError: One is.
    """
    for text in chain.from_iterable(columns):
        if len(text) > UNBROKEN:
            raise DataError(f"has {len(text):,} characters: it would take too much memory to read")


@lru_cache(maxsize=8)
def _cut_of(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], bool] | None:
    """Where texts may be cut for a tokenizer, and whether a space there is left out; None where they may not be."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not (_is_local(backend) if backend is not None else hasattr(tokenizer, "sp_model")):
        return None
    call: Any = tokenizer
    one, two, with_space, both = call(["one", "two", " two", "one two"], add_special_tokens=False)["input_ids"]
    if both not in (one + with_space, one + two):
        return None
    skips = both != one + with_space
    vocabulary = "\0".join(tokenizer.get_vocab())
    kinds = SPACES if skips else (*SPACES, *LINES)
    places = [place for place, inside in kinds if not re.search(inside, vocabulary)]
    return (re.compile("|".join(places)), skips) if places else None


def _is_local(backend: Any) -> bool:
    """Whether all parts of a tokenizer decide by characters beside each other, or by words."""
    try:
        parts = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    except Exception:  # a part that somebody wrote in Python cannot be looked into
        return False
    parts = list(_parts(parts))
    kinds = {part["type"] for part in parts}
    expressions = [CLASS.sub("", part["pattern"]["Regex"]) for part in parts if "Regex" in (part.get("pattern") or ())]
    if kinds - LOCAL or any(map(FAR.search, expressions)):
        return False
    model = type(backend.model).__name__
    if model in ("WordPiece", "WordLevel"):
        return bool(kinds & WORDS)
    return model == "Unigram" or (model == "BPE" and backend.model.dropout is None)


def _parts(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, dict) and "type" in state:
        yield state
    for inner in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        yield from _parts(inner)


@lru_cache(maxsize=8)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The bytes of the longest token, where each byte of a text is in a token; None where bytes may get lost.

    None is lost by a byte-level BPE that normalizes nothing and whose special tokens swallow no spaces.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "BPE" or backend.normalizer or not backend.pre_tokenizer:
        return None
    kinds = {part["type"] for part in _parts(json.loads(backend.pre_tokenizer.__getstate__()))}
    known, added = tokenizer.get_vocab(), backend.get_added_tokens_decoder().values()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if "ByteLevel" not in kinds or not known.keys() >= set(alphabet):
        return None
    return None if any(token.lstrip or token.rstrip for token in added) else max(len(token.encode()) for token in known)
