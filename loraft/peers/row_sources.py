"""Sources of rows as a config has them, and which rows are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from loraft.config.yaml_nodes import Value
from loraft.peers.translation import Translation

Source = dict[str, Value]
"""The keys of one source."""
FILES = ("json", "csv", "parquet", "text", "arrow")
"""Types of files that stand for the path of a dataset whose files are named by themselves."""
UNREAD = "a source has path, split, name, limit, weight, format, text_by and columns"
"""What is said of a key of a dataset that nothing here is like."""
STREAMS = ("streaming", "dataset_streaming", "pretraining_dataset")
"""Keys by which rows are read as a stream."""
SHARE = 0.05
"""The share that is held out where a number of rows was wanted."""


def place_of_files(path: str, files: Value) -> str | None:
    """The path of a source whose file is named as `datasets` takes it; None where several are."""
    listed = files if isinstance(files, list) else [] if files is None else [files]
    if len(listed) > 1 or isinstance(files, dict):
        return None
    return path if not listed else str(listed[0]) if path in FILES else f"hf://datasets/{path}/{listed[0]}"


def written_sources(sources: Sequence[Source]) -> Value:
    """Sources as short as a config has them: a path alone, one mapping, or a list."""
    written: list[Value] = [source["path"] if source.keys() == {"path"} else {**source} for source in sources]
    return written[0] if len(written) == 1 else written


def write_evaluation(translation: Translation, share: str, named: str | None = None) -> None:
    """What is evaluated: the rows under the key `named`, the share under the key `share`, or nothing."""
    value = translation.number(share)
    if any(translation.value(name) for name in STREAMS) and not (named and translation.value(named)):
        translation.leave(share, "rows that are read as a stream are not held out: name data.eval")
        translation.of_itself({"data.eval": None}, "nothing is evaluated where rows are streamed")
    for strategy in ("eval_strategy", "evaluation_strategy"):
        if translation.value(strategy) in ("no", False):
            translation.leave(strategy, "data.eval: null evaluates nothing")
            value = None
            translation.leave(share, f"{strategy}: no evaluates nothing")
    if named is not None and translation.value(named) is not None:
        translation.leave(share, f"{named} says what is evaluated")
    elif value is not None and 0 < value < 1:
        translation.write(share, {"data.eval": value})
    elif value is not None and value >= 1:
        why = f"a share is held out, and no number of rows: {value:g} of yours are another share than {SHARE:g}"
        translation.write(share, {"data.eval": SHARE}, why)
    else:
        translation.write(share, {"data.eval": None})
    translation.of_itself({"data.eval": None}, f"{translation.tool} evaluates nothing by default")
