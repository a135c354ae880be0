"""Text to tokens, cut where a prompt ends wherever a tokenizer would join the prompt to its answer.

At generation the prompt is tokenized without its answer. A row is tokenized whole, as the tokenizer does it, and cut at
a border only where the tokens before it would be others than those: there the answer is tokenized apart, so that it is
learned behind the tokens that generation feeds.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from loraft.tokenization.long_texts import LongTexts, Span

MOST_IN_A_CHARACTER = 8
"""An emoji of four bytes and what changes its colour, a token a byte."""


@dataclass(frozen=True)
class Piece:
    """One token.

    Attributes:
        text: What it spells inside a text, its space included; of a part of a character, the vocabulary's own name.
    """

    id: int
    text: str


class Pieces:
    """Spells tokens one by one, each as it would be inside a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Behind a word, where SentencePiece keeps the space that it drops at the start of a text.
        self._before = list(tokenizer.encode("a", add_special_tokens=False))
        self._known: dict[int, str | None] = {}

    def of(self, token_id: int) -> Piece:
        """This token."""
        text = self._inside(token_id)
        return Piece(token_id, self._name(token_id) if text is None else text)

    def all(self, token_ids: Sequence[int]) -> tuple[Piece, ...]:
        """These tokens."""
        return tuple(self.of(token_id) for token_id in token_ids)

    def row(self, token_ids: Sequence[int]) -> list[str]:
        """What each token of a row spells in its place.

        Where several tokens make one character it stands with the first of them, and the others spell nothing.
        """
        spelled: list[str] = []
        while (at := len(spelled)) < len(token_ids):
            for count in range(1, min(MOST_IN_A_CHARACTER, len(token_ids) - at) + 1):
                both = self._decode([*self._before, *token_ids[at : at + count]])
                text = both.removeprefix(self._decode(self._before))
                if text and "\N{REPLACEMENT CHARACTER}" not in text:
                    break
            else:
                count = 1
            spelled += [self.of(token_ids[at]).text if count == 1 else text, *[""] * (count - 1)]
        return spelled

    def utf8(self, token_id: int) -> bytes | None:
        """The bytes of this token, of a part of a character too; None where the vocabulary does not tell them."""
        if (text := self._inside(token_id)) is not None:
            return text.encode()
        name = self._name(token_id)
        if re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes.fromhex(name[3:5])
        letters = _letters_of_bytes()
        return bytes(map(letters.__getitem__, name)) if letters.keys() >= set(name) else None

    def _inside(self, token_id: int) -> str | None:
        """What this token spells inside a text; None of a part of a character."""
        if token_id not in self._known:
            before, both = self._decode(self._before), self._decode([*self._before, token_id])
            text = both[len(before) :] if both.startswith(before) else self._decode([token_id])
            self._known[token_id] = text if text and "\N{REPLACEMENT CHARACTER}" not in text else None
        return self._known[token_id]

    def _name(self, token_id: int) -> str:
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        return name if isinstance(name, str) else f"<{token_id}>"  # an id beyond the vocabulary has no name

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@cache
def _letters_of_bytes() -> dict[str, int]:
    """The byte that a letter stands for in the names of GPT-2's vocabulary, and of others of its kind."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


GUARDS = ("\n", "a", "1", ".")
"""What is put before a text that is tokenized apart where a tokenizer begins every text with a space of its own."""
KNOWN_CHARACTERS = 4_000_000
"""Prompts whose tokens are kept, in characters of all of them."""


@dataclass(frozen=True)
class BorderedText:
    """A text with the places where prompts end in it.

    Attributes:
        borders: Where the prompt of an answer ends, in order.
        literal: Where control tokens are written that are to be read as plain text.
        opens: The tokenizer puts its own special tokens before the text; otherwise a template has printed them.
        whole: Nobody asks which characters a token stands for; telling that takes time of a long text.
    """

    text: str
    borders: tuple[int, ...] = ()
    literal: tuple[Span, ...] = ()
    opens: bool = False
    whole: bool = False

    def beginning(self, characters: int) -> BorderedText:
        """The first so many characters."""
        borders = tuple(border for border in self.borders if border < characters)
        literal = tuple((start, min(stop, characters)) for start, stop in self.literal if start < characters)
        return replace(self, text=self.text[:characters], borders=borders, literal=literal)


@dataclass
class Encoded:
    """A text as tokens.

    Attributes:
        ids: The tokens; what the tokenizer itself puts behind a text is left out.
        offsets: The characters that each stands for, pairs or an array `[tokens, 2]`; white space may be missing at
            their edges.
        starts: The first token behind each border.
        closed: The tokenizer itself put an end-of-text token behind the text.
        spaced: It put a space of its own before an answer that is tokenized apart, and cannot do without.
    """

    ids: list[int] = field(default_factory=list)
    offsets: Any = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    closed: bool = False
    spaced: bool = False


@dataclass(frozen=True)
class _Piece:
    """A stretch of a text that is tokenized in one go."""

    text: str
    opens: bool = False
    inner: bool = False
    literal: bool = False
    whole: bool = False


Placed = tuple[int, _Piece, Encoded]
"""A stretch with its place in the text, and its tokens."""


@dataclass(frozen=True)
class _Check:
    """A border inside a piece: its place, how many of its tokens are before it, and which are compared to what."""

    border: int
    place: int
    stop: int
    ids: list[int]
    prompt: _Piece


class TextEncoder:
    """The one way from bordered texts to tokens, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._prompts: dict[_Piece, list[int]] = {}
        self._characters = 0

    @cached_property
    def _added(self) -> frozenset[int]:
        """The tokens that were added to the vocabulary: to list 6,400 takes 50 ms, and borders alone need them."""
        return frozenset(self._tokenizer.get_added_vocab().values())

    def encode(self, texts: Sequence[BorderedText]) -> list[Encoded]:
        """The tokens of `texts`, tokenized together, which is many times as fast as one by one."""
        cuts = [{edge for span in text.literal for edge in span} - {0, len(text.text)} for text in texts]
        found: dict[int, Encoded] = {}
        left = list(range(len(texts)))
        while left:
            pieces = {index: list(_pieces(texts[index], sorted(cuts[index]))) for index in left}
            encoded = iter(self._tokenized([piece for index in left for _, piece in pieces[index]]))
            rows = {index: [(start, piece, next(encoded)) for start, piece in pieces[index]] for index in left}
            checks = {index: list(self._checks(texts[index], cuts[index], row)) for index, row in rows.items()}
            self._look_up(check.prompt for of in checks.values() for check in of)
            for index, of in checks.items():
                joined = {check.border for check in of if check.ids != self._prompts[check.prompt]}
                cuts[index] |= joined
                if not joined:
                    found[index] = _together(rows[index], of)
            left = [index for index in left if index not in found]
        return [found[index] for index in range(len(texts))]

    def _checks(self, text: BorderedText, cuts: set[int], row: Sequence[Placed]) -> Iterable[_Check]:
        """What is to be compared for each border inside a piece.

        Both sides begin at the last added token before the border: a tokenizer reads what follows one by itself, so
        that the headers of a template are looked up once.
        """
        place = 0
        for border in text.borders:
            if border in cuts or not 0 < border < len(text.text):
                continue
            while place + 1 < len(row) and row[place + 1][0] < border:
                place += 1
            start, piece, encoded = row[place]
            stop = bisect_left(encoded.offsets, border - start, key=lambda span: span[0])
            added = next((at for at in range(stop - 1, 0, -1) if encoded.ids[at] in self._added), None)
            if added is None:
                prompt = replace(piece, text=piece.text[: border - start])
            else:
                prompt = _Piece(piece.text[encoded.offsets[added][0] : border - start], literal=piece.literal)
            yield _Check(border, place, stop, encoded.ids[added or 0 : stop], prompt)

    def _look_up(self, prompts: Iterable[_Piece]) -> None:
        """Tokenize those prompts that are not known yet."""
        prompts = dict.fromkeys(prompts)
        if self._characters > KNOWN_CHARACTERS:  # headers come again, and whole prompts do not
            self._prompts.clear()
            self._characters = 0
        new = [prompt for prompt in prompts if prompt not in self._prompts]
        self._characters += sum(len(prompt.text) for prompt in new)
        self._prompts |= zip(new, (encoded.ids for encoded in self._tokenized(new)), strict=True)

    def _tokenized(self, pieces: Sequence[_Piece]) -> list[Encoded]:
        """The pieces, in one call of the tokenizer for those of a kind."""
        found: dict[int, Encoded] = {}
        kinds: dict[_Piece, list[int]] = {}
        for index, piece in enumerate(pieces):
            kinds.setdefault(replace(piece, text=""), []).append(index)
        for kind, chosen in kinds.items():
            texts = [pieces[index].text for index in chosen]
            read = self._apart(texts, kind) if kind.inner else self._read(texts, kind)
            found |= zip(chosen, read, strict=True)
        return [found[index] for index in range(len(pieces))]

    def _apart(self, texts: Sequence[str], kind: _Piece) -> list[Encoded]:
        """Texts as they are tokenized inside another one."""
        found: dict[int, Encoded] = {}
        for guard in self._guards:
            left = [index for index in range(len(texts)) if index not in found]
            (before,) = self._read([guard], _Piece(""))
            read = self._read([guard + texts[index] for index in left], kind)
            for index, encoded in zip(left, read, strict=True):
                if encoded.ids[: len(before.ids)] == before.ids:
                    own = encoded.offsets[len(before.ids) :]
                    offsets = [(max(0, start - len(guard)), stop - len(guard)) for start, stop in own]
                    found[index] = Encoded(encoded.ids[len(before.ids) :], offsets)
        left = [index for index in range(len(texts)) if index not in found]
        spaced = self._read([texts[index] for index in left], kind)
        found |= zip(left, (replace(encoded, spaced=True) for encoded in spaced), strict=True)
        return [found[index] for index in range(len(texts))]

    @cached_property
    def _guards(self) -> tuple[str, ...]:
        ids = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        twice = str(self._tokenizer.decode([*ids, *ids], clean_up_tokenization_spaces=False))
        return ("",) if twice == "aa" else GUARDS

    def _read(self, texts: Sequence[str], kind: _Piece) -> list[Encoded]:
        read = LongTexts(self._tokenizer, special=kind.opens, offsets=True, rough=kind.whole, literal=kind.literal)
        eos = self._tokenizer.eos_token_id
        found = [Encoded(tokens.ids, tokens.offsets) for tokens in read.read(texts)]
        for encoded in found if kind.opens else ():
            # The tokenizer itself put an end-of-text token behind the text.
            encoded.closed = encoded.ids[-1:] == [eos] and tuple(encoded.offsets[-1]) == (0, 0)
            if encoded.closed:
                encoded.ids, encoded.offsets = encoded.ids[:-1], encoded.offsets[:-1]
        return found


def _pieces(text: BorderedText, cuts: Sequence[int]) -> Iterable[tuple[int, _Piece]]:
    """The stretches between cuts, each with its place."""
    spans, at = text.literal, 0  # in order, as the cuts are
    for start, stop in pairwise([0, *cuts, len(text.text)]):
        first = start == 0
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        literal = at < len(spans) and spans[at][0] <= start
        yield start, _Piece(text.text[start:stop], text.opens and first, not first, literal, text.whole)


def _together(pieces: Sequence[Placed], checks: Sequence[_Check]) -> Encoded:
    """The pieces as one text, and where its borders are."""
    first = [0, *accumulate(len(encoded.ids) for *_, encoded in pieces)]
    whole = pieces[0][2]
    if len(pieces) > 1:
        moved = [np.asarray(encoded.offsets, np.int64).reshape(-1, 2) + at for at, _, encoded in pieces]
        whole = replace(
            whole,
            ids=[token for *_, encoded in pieces for token in encoded.ids],
            offsets=np.concatenate(moved),
            spaced=any(encoded.spaced for *_, encoded in pieces),
        )
    own = next((place for place, span in enumerate(whole.offsets) if tuple(span) != (0, 0)), len(whole.ids))
    whole.starts = {at: start for (at, *_), start in zip(pieces, first, strict=False)} | {0: own}
    whole.starts |= {check.border: first[check.place] + check.stop for check in checks}
    return whole
