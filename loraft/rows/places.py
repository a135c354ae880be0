"""Where the rows of a source lie: a file, the files of a folder or a pattern, an address, or standard input."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from loraft.config.choices import TextBy
from loraft.figures import counted
from loraft.io.paths import HUB_ID
from loraft.io.row_types import ROW_TYPES
from loraft.rows.opening import RowFile, kind_of, told_where_unreadable
from loraft.rows.plain_texts import parted_by
from loraft.rows.readers import ALL_TYPES, check_file
from loraft.rows.remote import address_of, fetched, file_name, listed, local_path
from loraft.rows.row import source_error
from loraft.rows.standard_input import STANDARD_INPUT, standard_input

if TYPE_CHECKING:
    from loraft.config.sections import DataSource

AS_TABLE = "standard input begins like no other file that is read: it is taken for a table (CSV), not for plain text"
WHY: dict[TextBy, str] = {
    "file": "they are those of a folder or a pattern",
    "paragraph": "blank lines part them",
    "line": "no blank line parts paragraphs",
}
"""Why `auto` makes that a row."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, in order, and what there is to say about them, a sentence each."""

    files: tuple[RowFile, ...]
    notes: tuple[str, ...] = ()


def lies_in_files(name: str) -> bool:
    """Whether the path of a source means files; otherwise it is the name of a builtin or of a Hub dataset."""
    if name.startswith("builtin:"):
        return False
    is_place = name == STANDARD_INPUT or address_of(name) is not None or Path(name).expanduser().exists()
    return is_place or kind_of(PurePosixPath(name)) in ROW_TYPES or not HUB_ID.fullmatch(name)


def files_here(name: str) -> list[Path]:
    """What of this machine the path of a source names, as far as it is there."""
    path = _path(name)
    return [path] if path.exists() else [Path(each) for each in sorted(glob(str(path), recursive=True))]


def _path(name: str) -> Path:
    return Path(local_path(address_of(name) or "") or name).expanduser()


def files_of(source: DataSource) -> SourceFiles:
    """The files of a source that lies in files.

    Raises:
        DataError: There are none, they are of several types, or they cannot be reached.
    """
    if source.path == STANDARD_INPUT:
        kept = standard_input(as_text=source.text_by != "auto")
        found = _read_as(source, [RowFile(kept, str(kept))])
        return replace(found, notes=(AS_TABLE,)) if found.files[0].kind == ".csv" else found
    address = address_of(source.path)
    if address is None or local_path(address):
        names, several = _listed_here(_path(source.path))
        place: Callable[[str], Path] = Path
    else:
        names, several = listed(address)
        place = fetched
        if not several and kind_of(PurePosixPath(file_name(address))) not in ROW_TYPES:
            message, remedy = "does not end in a type of file that is read", f"Fetch it, and name it as {ALL_TYPES}."
            raise source_error(message, source.path, remedy)
    chosen, notes = _of_one_type(names, source.path) if several else (names, ())
    found = _read_as(source, [RowFile(place(name), name) for name in chosen], several=several)
    return replace(found, notes=(*notes, *found.notes))


def _listed_here(path: Path) -> tuple[Sequence[str], bool]:
    """The files that a path of this machine names, and whether it is that of a folder or a pattern."""
    if path.is_dir():
        return list(_inside(path)), True
    if path.exists() or not has_magic(str(path)):
        return [str(path)], False
    return [name for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()], True


def _inside(folder: Path) -> Iterator[str]:
    """The files in a folder and the folders below, by their names; what is hidden is no row."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))


def _of_one_type(names: Sequence[str], whole: str) -> tuple[list[str], tuple[str, ...]]:
    """Those of several files that hold rows, which all must do in one way, and what there is to say about that.

    Raises:
        DataError: None is of a type that is read, or they are of several.
    """
    kinds = {name: kind_of(PurePosixPath(file_name(name))) for name in names}
    types = Counter(kinds.values())
    read = {kind: count for kind, count in types.items() if kind in ROW_TYPES}
    if ".arrow" in types and read.keys() <= {".json"}:
        message = "holds .arrow files, as `Dataset.save_to_disk` writes them, and these are not read"
        of_split = "['train']" if any(file_name(name) == "dataset_dict.json" for name in names) else ""
        written = f"datasets.load_from_disk({whole!r}){of_split}.to_parquet('rows.parquet')"
        raise source_error(message, whole, f"Write the rows as Parquet, in Python: {written}")
    if not read:
        others = f"; there are {_counted(types)}" if types else ""
        remedy = f"Name files that end in {ALL_TYPES}."
        raise source_error(f"no file of rows is there{others}", whole, remedy)
    if len({ROW_TYPES[kind].content for kind in read}) > 1:
        remedy = f"Name those that hold the rows by a pattern, as in …/*{min(read)}, or each by itself in a list."
        raise source_error(f"holds files of several types: {_counted(read)}", whole, remedy)
    chosen = [name for name, kind in kinds.items() if kind in ROW_TYPES]
    rest = types - Counter(read)
    besides = f"; of other types, and not read, are {_counted(rest)}" if rest else ""
    among = f", {chosen[0]} first and {chosen[-1]} last" if len(chosen) > 1 else f", {chosen[0]}"
    return chosen, (f"{whole}: {counted(len(chosen), 'file is', 'files are')} read{among}{besides}",)


def _counted(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind or 'without an ending'}" for kind, count in sorted(types.items()))


def _read_as(source: DataSource, files: Sequence[RowFile], *, several: bool = False) -> SourceFiles:
    """The files with what the source says of their rows; what it leaves open they tell themselves."""
    files = [replace(file, text_by=source.text_by, sheet=source.name) for file in files]
    if source.text_by != "auto" or not files[0].is_text:
        return SourceFiles(tuple(files))
    check_file(files[0])
    with told_where_unreadable(files[0]):
        by: TextBy = "file" if several else parted_by(files[0])
    note = f"{source.path}: a row is a {by} (data.text_by auto: {WHY[by]})"
    return SourceFiles(tuple(replace(file, text_by=by) for file in files), (note,))
