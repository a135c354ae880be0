"""A made-up language to translate into, and a small T5 that knows nothing of it.

English sentences of who saw what become Tavi: the verb goes to the end, what describes a noun goes behind it, a noun
says by its ending whether there are several and whether something is done to it, and so does its adjective. The
northern dialect has the same words in another order and with other endings: the verb comes first, what describes a noun
before it, only the noun has endings, and what is done is told by a word of its own. All of it is a function of a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

__all__ = ["DIALECTS", "Sentence", "save_small_t5", "sentences", "write_pairs"]

NOUNS = {
    "cat": "miru", "dog": "belo",
    "bird": "sipa", "horse": "karo", "fish": "luni", "child": "tame", "king": "vode",
    "baker": "pano", "sailor": "naxi", "teacher": "dela", "river": "owi", "tree": "huso", "lamp": "zeri",
    "boat": "fuma",
}  # fmt: skip
ADJECTIVES = {
    "red": "rosha", "small": "pitu", "old": "vami", "quick": "teki", "quiet": "shulo", "green": "yaru", "tall": "goma",
    "happy": "jeli",
}  # fmt: skip
VERBS = {"saw": "vidar", "found": "trovar", "carried": "portal", "loved": "amir", "followed": "sekur", "heard": "audil"}
NUMBERS = {"two": "du", "three": "tri", "four": "kwa", "five": "pem"}
ADVERBS = {"today": "hodi", "slowly": "lente", "again": "rura", "often": "ofta"}


@dataclass(frozen=True)
class Phrase:
    """A noun with what describes it.

    Attributes:
        noun: In English, for one.
        adjective: In English; None where there is none.
        number: In English; None where it is one.
    """

    noun: str
    adjective: str | None
    number: str | None

    @property
    def english(self) -> str:
        """As English has it: `the old cat`, `three fish`."""
        plural = {"fish": "fish", "child": "children"}.get(self.noun, f"{self.noun}s")
        noun = self.noun if self.number is None else plural
        return " ".join(word for word in (self.number or "the", self.adjective, noun) if word is not None)


@dataclass(frozen=True)
class Sentence:
    """Who did what to whom, and how.

    Attributes:
        subject: Who did it.
        verb: In English.
        done_to: To whom.
        adverb: In English; None where there is none.
    """

    subject: Phrase
    verb: str
    done_to: Phrase
    adverb: str | None

    @property
    def english(self) -> str:
        """In English."""
        words = (self.subject.english, self.verb, self.done_to.english, self.adverb)
        return " ".join(word for word in words if word is not None)

    @property
    def tavi(self) -> str:
        """In Tavi: `miruno vamino tri lunien vidar`."""
        subject, done_to = _behind(self.subject, ""), _behind(self.done_to, "n")
        adverb = [] if self.adverb is None else [ADVERBS[self.adverb]]
        return " ".join([*subject, *done_to, *adverb, VERBS[self.verb]])

    @property
    def northern(self) -> str:
        """In the northern dialect."""
        subject, done_to = _before(self.subject), _before(self.done_to)
        adverb = [] if self.adverb is None else [ADVERBS[self.adverb]]
        return " ".join([VERBS[self.verb], *adverb, *done_to, "ka", *subject])


def _behind(phrase: Phrase, case: str) -> list[str]:
    ending = ("" if phrase.number is None else "ne") + case
    words = [NOUNS[phrase.noun] + ending]
    if phrase.adjective is not None:
        words.append(ADJECTIVES[phrase.adjective] + ending)
    return words + ([] if phrase.number is None else [NUMBERS[phrase.number]])


def _before(phrase: Phrase) -> list[str]:
    words = [] if phrase.number is None else [NUMBERS[phrase.number]]
    if phrase.adjective is not None:
        words.append(ADJECTIVES[phrase.adjective])
    return [*words, NOUNS[phrase.noun] + ("" if phrase.number is None else "n")]


DIALECTS: Mapping[str, Callable[[Sentence], str]] = {
    "tavi": lambda sentence: sentence.tavi,
    "northern": lambda sentence: sentence.northern,
}
"""What there is to translate into."""


def sentences(count: int, seed: int) -> list[Sentence]:
    """`count` different sentences."""
    drawn = random.Random(seed)
    found: dict[Sentence, None] = {}
    while len(found) < count:
        found[Sentence(_phrase(drawn), drawn.choice(list(VERBS)), _phrase(drawn), _maybe(drawn, ADVERBS))] = None
    return list(found)


def _phrase(drawn: random.Random) -> Phrase:
    return Phrase(drawn.choice(list(NOUNS)), _maybe(drawn, ADJECTIVES), _maybe(drawn, NUMBERS))


def _maybe(drawn: random.Random, words: Mapping[str, str]) -> str | None:
    return drawn.choice(list(words)) if drawn.random() < 0.5 else None


def write_pairs(path: Path, given: Sequence[Sentence], dialect: str) -> Path:
    """Rows `{"translation": {"en": …, DIALECT: …}}` as a .jsonl file."""
    rows = [{"translation": {"en": each.english, dialect: DIALECTS[dialect](each)}} for each in given]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_small_t5(folder: Path, *, width: int = 128, layers: int = 2, seed: int = 0) -> Path:
    """A folder with a T5 of random weights and a tokenizer for English and Tavi."""
    tokenizer = _tokenizer(folder)
    config = AutoConfig.for_model(
        "t5", vocab_size=len(tokenizer), d_model=width, d_kv=32, d_ff=2 * width, num_layers=layers, num_heads=4,
        num_decoder_layers=layers, dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Pieces of words as T5 has them, each beginning of a word marked, each text ended by `</s>`."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    given = sentences(400, seed=99)
    texts = [text for each in given for text in (each.english, each.tavi, each.northern)]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing("$A </s>", pair=None, special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
