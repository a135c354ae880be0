"""`loraft predict`: the class of a text, or of every row of a file, by a classifier that was trained."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from loraft import api
from loraft.cli.console import is_unicode, print_either, print_json
from loraft.cli.options import AnswerOptions, JsonOption, flag, option, refuse
from loraft.cli.text_tables import document, text_table
from loraft.cli.views.progress import watching
from loraft.errors import Interrupted, InvalidInputError
from loraft.inference.requests import ModelRequest


@dataclass(frozen=True)
class TextOptions:
    """What is classified, and where the classes go."""

    text: list[str] | None = option("TEXT", "A text to classify.")
    text_pair: list[str] | None = option("TEXT", "The second text of a pair.")
    texts: Path | None = option(
        "FILE",
        "Rows with text, and text_pair where there are two, in any file that training reads, plain text too; - is "
        "standard input.",
        "--input",
    )
    output: Path | None = option(
        "FILE",
        "Where each row of --input is written with its prediction and probabilities, as JSONL or .csv; the same "
        "command goes on with it [default: standard output].",
    )
    overwrite: bool = flag("Begin anew, whatever the output holds.")
    text_column: str | None = option("NAME", "What --input calls text.")
    pair_column: str | None = option("NAME", "What --input calls text_pair.")
    batch_size: int = option("N", "How many rows at a time.", default=32, min=1)

    def check(self, target: str | None) -> None:
        """Refuse options that contradict one another."""
        first, second = _one("--text", self.text), _one("--text-pair", self.text_pair)
        file, out, names = self.texts is not None, self.output is not None, self.text_column or self.pair_column
        unasked = f"{target!r} is TARGET, the model: give what it classifies by --text or --input."
        refuse(
            (target is not None and first is None and not file, unasked),
            ((first is not None) == file, "Give either --text or --input."),
            (second is not None and first is None, "--text-pair stands beside --text."),
            (out and not file, "--output is about --input, and there is none."),
            (self.overwrite and not out, "--overwrite is about --output, and there is none."),
            (names and not file, "--text-column and --pair-column are about --input, and there is none."),
        )


def predict(
    given: TextOptions,
    asked: Annotated[AnswerOptions, "target adapters base_model quantize dtype trust_remote_code"],
    as_json: JsonOption = False,
) -> None:
    """Tell the classes of texts by a classifier that was trained with task: seq_cls.

    Each row gets its prediction, the likeliest class, and the probability of every class.
    """
    model = asked.model
    given.check(asked.target)
    if given.text:
        _predict_text(model, given.text[0], given.text_pair[0] if given.text_pair else None, as_json=as_json)
    elif given.output is not None:
        told = _classify(model, given, given.output)
        names = {"held": "there before", "cut": "texts cut"}
        held = {key: value for key, value in told.items() if key == "rows" or value not in ({}, None, 0)}
        shown = {names.get(key, key): value for key, value in held.items()}
        print_either(told, document(shown, rest="rows"), as_json=as_json)
    else:
        _print_rows(model, given, as_json=as_json)


def _one(name: str, values: list[str] | None) -> str | None:
    """The one value of an option; of several the last would win, and the others be lost without a word."""
    refuse((len(values or ()) > 1, f"{name} is one text; many go into a file, with --input and --output."))
    return values[0] if values else None


def _print_rows(model: ModelRequest, given: TextOptions, *, as_json: bool) -> None:
    """The rows with their classes on standard output, where no file is named for them."""
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        try:
            _classify(model, given, rows)
        except Interrupted as stop:  # what lay in the folder goes with it
            message, remedy = "stopped: nothing was printed", "With --output FILE the same command goes on."
            raise Interrupted(message, signal_number=stop.signal_number, remedy=remedy) from None
        lines = rows.read_text(encoding="utf-8")
    if as_json:
        print_json([json.loads(line) for line in lines.split("\n")[:-1]])
    else:
        sys.stdout.write(lines)


def _classify(model: ModelRequest, given: TextOptions, output: Path) -> dict[str, object]:
    assert given.texts is not None
    with watching("predict_file") as view:
        return api.predict_file(
            model,
            texts=given.texts,
            output=output,
            text_column=given.text_column,
            pair_column=given.pair_column,
            batch_size=given.batch_size,
            overwrite=given.overwrite,
            observer=view,
        ).as_dict()


def _predict_text(model: ModelRequest, text: str, second: str | None, *, as_json: bool) -> None:
    """The class of one text, and how likely each is."""
    for name, given in (("--text", text), ("--text-pair", second)):
        if given is not None and not given.strip():
            raise InvalidInputError("is empty", where=name)
        if given is not None and not is_unicode(given):
            raise InvalidInputError("is not UTF-8 text", where=name)

    with watching("predict") as view:
        (shares,) = api.predict(model, texts=[(text, second)], observer=view)
    likeliest = sorted(shares, key=shares.__getitem__, reverse=True)
    pair = {} if second is None else {"text_pair": second}
    told = {"text": text, **pair, "prediction": likeliest[0], "probabilities": shares}
    rows = ((label, f"{100 * shares[label]:.2f} %") for label in likeliest)
    print_either(told, [text_table(likeliest[0], ("class", ">probability"), rows)], as_json=as_json)
