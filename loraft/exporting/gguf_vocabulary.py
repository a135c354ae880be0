"""A tokenizer as the keys of a GGUF file: its tokens with their types, merges or scores, and how it splits text.

llama.cpp has two of the kinds that decoders use: byte-level BPE with a named rule for splitting, and the BPE of
SentencePiece, which merges by scores. A tokenizer that is neither, or splits by a rule without a name, would give other
tokens there than here, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.errors import ModelError
from loraft.exporting.gguf_settings import Value
from loraft.models.gguf_import import RULES

Json = Mapping[str, Any]
GPT2_SPLIT = {"type": "Split", "pattern": {"Regex": "GPT-2"}}
"""What `ByteLevel` does where it splits by itself, in the form of every other split."""
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""The rules by which a text that is a token is one, whatever the merges make of it."""
WITHOUT_MARKS = ("tekken", "gpt-4o")
"""The rules of which llama.cpp leaves the combining marks out."""
SPACE = "▁"
UNMERGED = -1e6
"""The score of tokens that no merge makes."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The types of tokens. Source: llama.cpp, include/llama.h, `llama_token_type`."""


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, rows: int, where: str
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The keys of a fast tokenizer, and what a person should know, a sentence each; errors call it `where`.

    There are as many tokens in the file as the model has `rows` of embeddings.

    Raises:
        ModelError: llama.cpp would make other tokens of a text.
    """
    backend: Any = tokenizer.backend_tokenizer
    described: Json = json.loads(backend.to_str())
    strips = [each["content"] for each in described["added_tokens"] if each["lstrip"] or each["rstrip"]]
    said = f"llama.cpp keeps white space beside {', '.join(strips[:4])}, which the tokenizer takes away"
    notes = [said] if strips else []
    if described["model"]["type"] != "BPE":
        raise _refused(f"it is of the kind {described['model']['type']}, and llama.cpp's decoders have BPE", where)
    if any(part["type"] == "ByteLevel" for part in _parts(described["pre_tokenizer"])):
        values, more = _byte_level(described, where)
    else:
        values, more = _of_sentencepiece(described, where)
    tokens, types = _tokens(tokenizer, described, rows)
    values |= {"tokens": tokens, "token_type": types}
    if "scores" in values:
        values["scores"] = _scores(tokens, described["model"]["merges"], where)
    return {f"tokenizer.ggml.{key}": value for key, value in {**values, **_ends(tokenizer)}.items()}, (*notes, *more)


def _refused(what: str, where: str) -> ModelError:
    message = f"llama.cpp would split text otherwise than the tokenizer: {what}"
    remedy = "Fold the adapter in by `loraft.merge`: llama.cpp's convert_hf_to_gguf.py may know the folder's tokenizer."
    return ModelError(message, where=where, remedy=remedy)


def _parts(given: Json | None) -> list[Json]:
    """The normalizers or pre-tokenizers that one is made of, in their order; a tokenizer may have none."""
    if given is None:
        return []
    return [*given.get("normalizers", ()), *given.get("pretokenizers", ())] if given["type"] == "Sequence" else [given]


def _byte_level(described: Json, where: str) -> tuple[dict[str, Value], list[str]]:
    """The keys of byte-level BPE."""
    notes, model = [], described["model"]
    for part in _parts(described["normalizer"]):
        if part["type"] != "NFC":
            raise _refused(f"it normalizes text by {part['type']}", where)
        notes.append("the tokenizer composes letters with their accents first (NFC), and llama.cpp does not")
    own = _splits(_parts(described["pre_tokenizer"]))
    named = [name for name, rule in RULES.items() if _splits(_parts(json.loads(rule.__getstate__()))) == own]
    words_first = bool(model.get("ignore_merges"))
    rule = next((name for name in named if (name in WHOLE_WORDS_FIRST) == words_first), None)
    if rule is None:
        raise _refused("it splits by a rule that none of the names which loraft knows stands for", where)
    if rule in WITHOUT_MARKS:
        notes.append("llama.cpp parts words at combining marks, as Hindi has them, and the tokenizer does not")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"model": "gpt2", "pre": rule, "merges": merges}, notes


def _splits(parts: Sequence[Json]) -> list[object]:
    """What pre-tokenizers do, in one form: two lists are equal where they split alike."""
    found: list[object] = []
    for part in parts:
        if part["type"] == "ByteLevel":
            if part.get("add_prefix_space"):
                found.append("a space in front")
            found += [GPT2_SPLIT] if part.get("use_regex", True) else []
        elif part["type"] == "Split" and (part["behavior"], part["invert"]) in (("Isolated", False), ("Removed", True)):
            found.append({"type": "Split", "pattern": part["pattern"]})
        else:
            found.append(part)
    return found


def _of_sentencepiece(described: Json, where: str) -> tuple[dict[str, Value], list[str]]:
    """The keys of SentencePiece's BPE, whose spaces are ▁; the scores are made later."""
    if not described["model"].get("byte_fallback"):
        raise _refused("it is a BPE neither of bytes nor with bytes to fall back on", where)
    in_front, notes = False, []
    for part in (*_parts(described["normalizer"]), *_parts(described["pre_tokenizer"])):
        kind = part["type"]
        if kind == "Prepend" and part["prepend"] == SPACE:
            in_front = True
        elif kind == "Metaspace" and part["replacement"] == SPACE:
            in_front = in_front or part["prepend_scheme"] != "never"
            if part["prepend_scheme"] == "first":
                notes.append("llama.cpp puts a space in front of text behind a control token; the tokenizer does not")
        elif not (kind in ("Replace", "Split") and part["pattern"] == {"String": " "}):
            raise _refused(f"it changes text by {kind} first", where)
    return {"model": "llama", "pre": "default", "scores": [], "add_space_prefix": in_front}, notes


def _scores(tokens: Sequence[str], merges: Sequence[Any], where: str) -> list[float]:
    """A score for each token, by which the merges come in their order: the earlier, the higher.

    Raises:
        ModelError: Merges that make one token stand apart, so that no score can stand for all of them.
    """
    rank: dict[str, int] = {}
    last = None
    for number, pair in enumerate(merges):
        made = "".join(pair.split(" ") if isinstance(pair, str) else pair)
        if made != last and made in rank:
            raise _refused(f"its merges to {made!r} stand apart, and llama.cpp has one score for all of them", where)
        rank.setdefault(made, number)
        last = made
    return [-float(rank[token]) if token in rank else UNMERGED for token in tokens]


def _tokens(tokenizer: PreTrainedTokenizerBase, described: Json, rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of each token; an embedding without a token has a placeholder."""
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = {each["id"]: each for each in described["added_tokens"]}
    falls_back, unknown = bool(described["model"].get("byte_fallback")), described["model"].get("unk_token")

    def kind(number: int) -> int:
        if number not in texts:
            return UNUSED
        text = texts[number]
        if falls_back and text == unknown:
            return UNKNOWN
        if number in added:
            return CONTROL if added[number]["special"] else USER_DEFINED
        return BYTE if falls_back and len(text) == 6 and text.startswith("<0x") else NORMAL

    return [texts.get(number, f"[PAD{number}]") for number in range(rows)], [kind(number) for number in range(rows)]


def _ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """Which tokens begin and end texts, and whether they are added to what is read."""
    ids = tokenizer("a")["input_ids"]
    ends = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    values: dict[str, Value] = {key: int(number) for key, number in special.items() if number is not None}
    return {**values, "add_bos_token": adds_beginning(tokenizer), "add_eos_token": ends}


def adds_beginning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts its begin-of-text token before what it reads."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
