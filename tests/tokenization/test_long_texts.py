"""Long texts: the tokens of the whole, in bounded memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection
from loraft.dataset.build import prepare
from loraft.errors import DataError
from loraft.rows.formats import Seq2SeqRecord
from loraft.tokenization import long_texts
from loraft.tokenization.long_texts import LongTexts, ManyTokensError
from loraft.tokenization.plain_text_rows import ClassificationRenderer, Seq2SeqRenderer
from tests.tiny import tiny_tokenizer
from tests.tokenization.chats import CHATS, tokenizer_for

WORDS = [
    "the", "customer", "said", "that", "order", "is", "late", "photosynthesis", "(and", "never);", "done.", "x", "y",
    "1234567", "ünïcödé", "日本語。中文", "—", "<mark>", "<|end|>", "don't", "e\u0301", "foo_bar",
]  # fmt: skip
BETWEEN = (" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", " \n ")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def long_text(words: int = 4000, seed: int = 0) -> str:
    """Words, marks and spaces of all kinds, and stretches of one character."""
    random_ = random.Random(seed)
    parts = [random_.choice(WORDS) + random_.choice(BETWEEN) for _ in range(words)]
    parts[words // 2] = "a" * 700 + " " * 300 + "\n" * 40
    return "".join(parts)


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator([long_text(600, seed=5)], trainer)
    tokenizer.add_tokens([AddedToken("<mark>", lstrip=True, rstrip=True), AddedToken("<|end|>", special=True)])
    return tokenizer


def bpe(**options: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=420, show_progress=False, **options)


def byte_level(split: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [pre_tokenizers.Split(Regex(split), "isolated"), byte] if split else [byte]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, bpe(initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))


def llama_2() -> Tokenizer:
    """BPE over the whole text, which begins with a space: there are no words for it to be cut into."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # for training alone
    trained(tokenizer, bpe(special_tokens=["<unk>"]))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 421)])
    return tokenizer


def t5() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    trained(tokenizer, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level, "llama-3": lambda: byte_level(LLAMA_3), "llama-2": llama_2, "t5": t5, "bert": bert,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a few hundred characters are long."""
    for name, size in {"LONG": 300, "UNBROKEN": 3000, "TOGETHER": 5000, "PIECE": 70, "AROUND": 40}.items():
        monkeypatch.setattr(long_texts, name, size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_tokens_of_the_whole(kind: str, small: None) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())
    for seed in range(3):
        text = long_text(seed=seed)
        assert len(list(LongTexts(tokenizer)._pieces(text))) > 5, "it is cut"
        for special in (True, False):
            whole = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
            read, short = LongTexts(tokenizer, special=special, offsets=True).read([text, "a short one"])
            assert read.ids == whole["input_ids"]
            assert [*map(tuple, read.offsets)] == [*map(tuple, whole["offset_mapping"])]
            assert short.ids == tokenizer("a short one", add_special_tokens=special)["input_ids"]
            (rough,) = LongTexts(tokenizer, special=special, offsets=True, rough=True).read([text])
            assert rough.ids == whole["input_ids"]
            assert [tuple(offset) == (0, 0) for offset in rough.offsets] == [
                tuple(offset) == (0, 0) for offset in whole["offset_mapping"]
            ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_has_the_first_tokens_and_more_than_asked(kind: str, small: None) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())
    text = long_text()
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for most in (1, 100, 1500):
        beginning = LongTexts(tokenizer).beginning(text, most)
        ids = tokenizer(beginning, add_special_tokens=False)["input_ids"]
        assert ids == whole[: len(ids)]
        assert most < len(ids) < len(whole)
    assert LongTexts(tokenizer).beginning(text, len(whole)) is text


def test_tokenizers_that_look_further_read_texts_whole(small: None) -> None:
    looks_back = byte_level(r"(?<=e) |\S+|\s+")
    lines_as_words = Tokenizer(models.WordLevel({"a b": 1, "[UNK]": 0}, unk_token="[UNK]"))
    crossing = byte_level()
    crossing.add_tokens(["order is"])
    drops = byte_level()
    drops.model.dropout = 0.1
    for backend in (looks_back, lines_as_words, drops):
        assert long_texts._cut_of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=crossing)
    text = "the order is late " * 100
    assert LongTexts(tokenizer).read([text])[0].ids == tokenizer(text)["input_ids"]


def test_a_text_without_a_place_to_cut_is_refused_beyond_what_is_read_whole(small: None) -> None:
    tokenizer = tiny_tokenizer()
    texts = LongTexts(tokenizer)
    assert texts.read(["a" * 2900])[0].ids == tokenizer("a" * 2900)["input_ids"]
    with pytest.raises(DataError):
        texts.read(["a" * 3100])
    with pytest.raises(ManyTokensError) as raised:
        texts.beginning("a" * 3100, 20)
    assert 20 < raised.value.fewest <= len(tokenizer("a" * 3100)["input_ids"])
    with pytest.raises(DataError):
        texts.beginning("a" * 3100, 3000)


@pytest.mark.parametrize("choice", ["drop", "truncate", "split"])
@pytest.mark.parametrize("row_format", ["text", "prompt_completion", "messages"])
def test_long_rows_become_what_they_become_when_read_whole(
    tmp_path: Path, choice: str, row_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = long_text(800).replace("<|end|>", "")
    row: dict[str, object] = {
        "text": {"text": text},
        "prompt_completion": {"prompt": text[:900], "completion": text[900:]},
        "messages": {"messages": [{"role": r, "content": text} for r in ("user", "assistant", "user", "assistant")]},
    }[row_format]
    brief = json.dumps(row).replace(json.dumps(text)[1:-1], "brief")
    if row_format == "prompt_completion":
        brief = '{"prompt": "what", "completion": "this"}'
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{brief}\n{json.dumps(row)}\n", encoding="utf-8")
    data = {"train": str(path), "eval": None, "max_length": 150, "on_overlength": choice}
    config = RunConfig.model_validate({"model": {"name_or_path": "m"}, "data": data})
    tokenizer = tokenizer_for(CHATS["chatml"])

    def made() -> list[tuple[list[int], list[int]]]:
        prepared = prepare(config, tokenizer)
        made_in_part.append(prepared.report.sources[0].in_part)
        return [(example.input_ids, example.labels) for example in prepared.train]

    made_in_part: list[int] = []
    whole = made()
    for name, size in {"LONG": 300, "UNBROKEN": 3000, "TOGETHER": 5000, "PIECE": 70, "AROUND": 40}.items():
        monkeypatch.setattr(long_texts, name, size)
    assert made() == whole
    assert made_in_part == [0, 0 if choice == "split" else 1]


@pytest.mark.parametrize("most", [60, 61])
def test_pairs_of_long_texts_are_cut_as_when_read_whole(most: int, small: None) -> None:
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bert(), model_input_names=inputs)
    renderer = ClassificationRenderer(tokenizer, labels=("a", "b"))
    longer, long, short = long_text(500), long_text(400), "a short text"
    for pair in [(longer, long), (long, longer), (longer, longer), (longer, short), (short, longer), (longer, None)]:
        text, second = renderer.beginnings(*pair, most)
        assert len(text) + len(second or "") < len(pair[0]) + len(pair[1] or "")
        parts = (part for part in pair if part)
        whole = tokenizer(*parts, truncation="longest_first", max_length=most, split_special_tokens=True)
        assert renderer.text_ids([(text, second)], most) == [(whole["input_ids"], whole["token_type_ids"])]


def test_long_sources_and_targets_are_cut_as_when_read_whole(small: None) -> None:
    renderer = Seq2SeqRenderer(PreTrainedTokenizerFast(tokenizer_object=t5(), eos_token="</s>"))
    limits = DataSection.model_validate({"train": "x", "max_length": 60, "max_target_length": 40})
    text = long_text(500)
    for pair in (Seq2SeqRecord(text, "short"), Seq2SeqRecord("short", text), Seq2SeqRecord(text, text)):
        (whole,) = renderer.examples([pair], ["here"])
        beginning = renderer.beginning(pair, limits)
        (part,) = renderer.examples([beginning], ["here"])
        assert part.tokens < whole.tokens
        assert (renderer.too_long(part, limits) is None) is (renderer.too_long(whole, limits) is None) is False
        assert renderer.cut(beginning, part, limits, "truncate") == renderer.cut(pair, whole, limits, "truncate")
    assert renderer.beginning(Seq2SeqRecord("short", "short"), limits) == Seq2SeqRecord("short", "short")


GIANT = """
import re, sys
from pathlib import Path
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection, DataSource, ModelSection
from loraft.dataset.build import prepare
from tests.tiny import tiny_tokenizer
path, choice = sys.argv[1:]
held = lambda what: int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = held("VmRSS")
data = DataSection(train=(DataSource(path=path),), eval=None, max_length=256, on_overlength=choice)
kept = len(prepare(RunConfig(model=ModelSection(name_or_path="x"), data=data), tiny_tokenizer()).train)
# The peak of this process alone: getrusage counts what the program that started it held.
print(kept, held("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["drop", "truncate", "split"])
def test_a_row_of_50_mb_takes_bounded_memory(tmp_path: Path, choice: str) -> None:
    text = ("the customer said that the order is late; " * 1_200_000)[:50_000_000]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the order is late"}\n' + json.dumps({"text": text}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", GIANT, str(path), choice], capture_output=True, text=True, check=True, timeout=300
    )
    kept, taken_bytes = map(int, done.stdout.split())
    assert kept == 1 if choice == "drop" else kept > 1
    assert taken_bytes < 1.0e9
