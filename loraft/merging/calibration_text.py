"""The text that two models read to be compared: rows that a run held out, then rows of many kinds that are built in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase as Tokenizer

from loraft.dataset.build import prepare
from loraft.errors import DataError, LoraftError, first_line
from loraft.evaluation.past_run import past_run
from loraft.io.paths import cache_folder
from loraft.rows.formats import Seq2SeqRecord
from loraft.rows.synthetic_tickets import tickets
from loraft.tasks.training_metadata import SourceFormat
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

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
    """Rows of tokens, and where they are from; an encoder-decoder says its `targets` to them.

    Attributes:
        own: How many of them are from there, where built-in ones follow.
    """

    ids: tuple[list[int], ...]
    source: str
    notes: tuple[str, ...] = ()
    targets: tuple[list[int], ...] = ()
    own: int | None = None

    def behind(self, ids: list[int]) -> Rows:
        """The same behind a row of `ids`, if there are any; an encoder-decoder says them again."""
        if not ids:
            return self
        own = None if self.own is None else self.own + 1
        return replace(self, ids=(ids, *self.ids), targets=(ids, *self.targets) if self.targets else (), own=own)

    def first(self, count: int) -> Rows:
        """The first `count` of them, and where these are from."""
        source = self.source if self.own is None or count <= self.own else f"{self.source} and {BUILT_IN}"
        return replace(self, ids=self.ids[:count], targets=self.targets[:count], source=source)


def rows_for(adapter: Path, tokenizer: Tokenizer, sources: SourceFormat | None = None, longest: int = LONGEST) -> Rows:
    """The rows that the run of an adapter held out, followed by the built-in ones, should there be too few.

    The run tells its data, where the adapter's folder lies in one or in one of its checkpoints. With `sources` the rows
    are pairs, for an encoder-decoder.
    """
    built_in = built_in_rows(tokenizer, sources, longest)
    try:
        run = past_run(adapter)
        if run is None or run.config.data.eval is None:
            return built_in
        notes = tuple(run.about_held_out())
        prepared = prepare(run.config, tokenizer, cache_folder())
        run.check_held_out(prepared.held_out)
    except (LoraftError, OSError) as error:
        note = f"the run's held-out rows cannot be read, and {BUILT_IN} is used: {first_line(error)}"
        return replace(built_in, notes=(note,))
    ids = [list(example.input_ids[:longest]) for example in prepared.eval]
    targets = [list(example.labels[:longest]) for example in prepared.eval] if sources is not None else []
    return Rows((*ids, *built_in.ids), "the run's held-out rows", notes, (*targets, *built_in.targets), len(ids))


def built_in_rows(tokenizer: Tokenizer, sources: SourceFormat | None = None, longest: int = LONGEST) -> Rows:
    """Prose, code and data in several languages, then customers' messages; over 10,000 tokens.

    An encoder-decoder, which has `sources`, reads each and says it again. A tokenizer that needs to know languages, of
    which nobody says any, is left in those that it begins with.
    """
    told = [cast("Sequence[dict[str, str]]", row["messages"])[1:] for row in tickets("eval")]
    texts = [*PASSAGES, *("\n".join(message["content"] for message in messages) for messages in told)]
    try:
        renderer = None if sources is None else Seq2SeqRenderer(tokenizer, **vars(sources))
    except DataError:
        renderer = None
    if renderer is None:
        made = (list(tokenizer(text, verbose=False)["input_ids"])[:longest] for text in texts)
        ids = tuple(row for row in made if row)
        return Rows(ids, BUILT_IN, targets=() if sources is None else ids)
    pairs = renderer.examples([renderer.render(Seq2SeqRecord(text, text)) for text in texts], [BUILT_IN] * len(texts))
    kept = [pair for pair in pairs if pair.input_ids]
    targets = tuple(pair.labels[:longest] for pair in kept)
    return Rows(tuple(pair.input_ids[:longest] for pair in kept), BUILT_IN, targets=targets)
