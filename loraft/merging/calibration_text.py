"""Text to compare models on: the rows that a run held out, or else text that comes with loraft.

This module turns rows into tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loraft.dataset.build import prepare
from loraft.errors import DataError, LoraftError
from loraft.evaluation.source_run import past_run
from loraft.io.paths import cache_folder
from loraft.rows.formats import Seq2SeqRecord
from loraft.rows.synthetic_tickets import tickets
from loraft.tasks.task import SourceFormat
from loraft.tokenization.seq2seq_rows import Seq2SeqRenderer

LONGEST = 256
"""The most tokens of a row; fewer where a model has fewer positions."""
BUILT_IN = "built-in text"
PASSAGES = (
    "The river had been rising for three days before anyone thought to look at the bridge. By then the water was brown "
    "and fast, and the planks in the middle had begun to move.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. In plants it takes place in the "
    "chloroplasts, whose green pigment absorbs red and blue light best.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\n"
    "A: From 9:40 to 13:00 it is 3 hours and 20 minutes, and 5 minutes more: 3 hours and 25 minutes.",
    "Der Ausschuss hat am Dienstag beschlossen, die Frist bis zum 30. Juni zu verlängern. Anträge, die danach "
    "eingehen, werden erst im Herbst behandelt.",
    "La biblioteca abre de lunes a viernes, de nueve a ocho. Los sábados cierra a las dos y los domingos no abre.",
    '{"name": "kettle", "price": 24.9, "in_stock": true, "tags": ["kitchen", "steel"], "dimensions": {"height": 22}}',
    "Preheat the oven to 180 degrees. Beat the butter with the sugar until it is pale, add the eggs one at a time, "
    "then fold in the flour. Bake for 35 minutes and let it cool in the tin.",
    "In 1854 a physician marked on a map of the city where each of the dead had lived. The marks gathered around one "
    "pump, and when its handle was taken away the outbreak ended.",
)


@dataclass(frozen=True)
class Rows:
    """Rows of tokens.

    Attributes:
        ids: The tokens of each row.
        source: What they are, in a few words.
        notes: What a person should know, a sentence each.
        targets: What an encoder-decoder says to each of them, token by token; none where the rows are read alone.
    """

    ids: tuple[list[int], ...]
    source: str
    notes: tuple[str, ...] = ()
    targets: tuple[list[int], ...] = ()


def rows_for(
    adapter: Path, tokenizer: PreTrainedTokenizerBase, sources: SourceFormat | None = None, longest: int = LONGEST
) -> Rows:
    """The rows that the run of an adapter held out, followed by the built-in ones, should there be too few.

    Args:
        adapter: The adapter's folder; where it lies in a run or in one of its checkpoints, the run tells its data.
        tokenizer: The one that was trained with.
        sources: How an encoder-decoder's sources were rendered; None for a model that reads one text.
        longest: The most tokens of a row, and of a target.
    """
    built_in = built_in_rows(tokenizer, longest) if sources is None else built_in_pairs(tokenizer, sources, longest)
    try:
        run = past_run(adapter)
        if run is None or run.config.data.eval is None:
            return built_in
        notes = tuple(run.about_held_out())
        prepared = prepare(run.config, tokenizer, cache_folder())
        run.check_held_out(prepared.held_out)
        held_out = prepared.eval
    except (LoraftError, OSError) as error:
        reason = str(error).splitlines()[0]
        note = f"the run's held-out rows cannot be read, and {BUILT_IN} is used: {reason}"
        return replace(built_in, notes=(note,))
    ids = tuple(list(example.input_ids[:longest]) for example in held_out)
    targets = () if sources is None else tuple(list(example.labels[:longest]) for example in held_out)
    own = "the run's held-out rows"
    return Rows((*ids, *built_in.ids), own, notes, (*targets, *built_in.targets))


def built_in_rows(tokenizer: PreTrainedTokenizerBase, longest: int = LONGEST) -> Rows:
    """Prose, code and data in several languages, then customers' messages; over 10,000 tokens."""
    made = (list(tokenizer(text, verbose=False)["input_ids"])[:longest] for text in _texts())
    return Rows(tuple(ids for ids in made if ids), BUILT_IN)


def built_in_pairs(tokenizer: PreTrainedTokenizerBase, sources: SourceFormat, longest: int = LONGEST) -> Rows:
    """The built-in texts for an encoder-decoder: each is read, and said again.

    A tokenizer that needs to know languages, of which nobody says any, is left in those that it begins with.
    """
    try:
        renderer = Seq2SeqRenderer.for_tokenizer(
            tokenizer, prefix=sources.prefix, source_lang=sources.source_lang, target_lang=sources.target_lang
        )
    except DataError:
        rows = built_in_rows(tokenizer, longest)
        return replace(rows, targets=rows.ids)
    pairs = [renderer.render(Seq2SeqRecord(text, text)) for text in _texts()]
    made = renderer.examples(pairs, [BUILT_IN] * len(pairs))
    kept = [(pair.input_ids[:longest], pair.labels[:longest]) for pair in made if pair.input_ids]
    return Rows(tuple(ids for ids, _ in kept), BUILT_IN, targets=tuple(labels for _, labels in kept))


def _texts() -> Iterator[str]:
    yield from PASSAGES
    for row in tickets("eval"):
        messages = row["messages"]
        assert isinstance(messages, list)
        yield "\n".join(message["content"] for message in messages[1:])
