"""`loraft.convert`: a model or an adapter whose weights are pickled becomes one with safetensors."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from loraft.adapters.model_card import shown
from loraft.config.sections import ModelSection
from loraft.converting.limited_process import rewritten
from loraft.converting.pickled_weights import COMPANY, MODEL_INDEX, PickledWeights, find_weights
from loraft.errors import ModelError, RunFolderError, VerificationError
from loraft.events import Observer, Progress, ignored
from loraft.figures import listed
from loraft.io.atomic import atomic_dir, output_errors
from loraft.io.checksums import write_record
from loraft.io.resources import require_free_bytes
from loraft.models.auto_model import meta_model
from loraft.models.hf_config import code_notes
from loraft.models.load_model import load_config
from loraft.models.safetensors_index import INDEX, TensorHeader, headers_of, mapped_tensor, raw_bytes, write_index
from loraft.version import __version__

SMALL_FILES_BYTES = 64 << 20
ANOTHER = "Name a folder that is not there."


@dataclass(frozen=True)
class ConvertReport:
    """What was converted.

    Attributes:
        files: The bytes of each file that was written, by name.
        tensors: How many there are, and `bytes` what they take.
        tied: Tensors that were in the file as another's memory, and that transformers makes of that one.
        left: What else lies in the source, and was not taken along.
    """

    source: str
    out: Path
    files: dict[str, int]
    tensors: int
    bytes: int
    tied: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it."""
        return {**asdict(self), "out": str(self.out)}


def convert(
    source: str, out: str | Path, *, revision: str | None = None, observer: Observer = ignored
) -> ConvertReport:
    """Write a model or an adapter with pickled weights anew, as safetensors, with its config and tokenizer beside them.

    A pickle can run code when it is opened. It is opened by torch as tensors alone, in a process that has no network,
    starts no program, writes no other file and has bounds of memory and time. What was written is then read back, and
    must be the same numbers.

    Args:
        source: The folder of a model or an adapter, a pickled file in one, or a Hub id.
        out: The folder to write; nothing may be there.
        revision: A branch, tag or commit; of Hub models only.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is written: nothing to convert, `out` is there, a file that holds something
            else than tensors or asks for code to be run, a disk that is too small.
        VerificationError: What was written is not what was read; nothing is at `out`.
    """
    out = Path(out).expanduser()
    _refuse_taken(out)
    weights = find_weights(source, revision)
    needed = weights.num_bytes + SMALL_FILES_BYTES
    require_free_bytes(out.parent, needed, "the converted model", remedy="Name an `out` on another disk.")
    with output_errors(out), atomic_dir(out) as staging:
        sums, tied = _write(weights, staging, observer)
        tensors = _verified(staging, weights, sums, tied)
        left = _copy_company(weights, staging)
        record = {"source": {"name": shown(source), "revision": revision}, "versions": {"loraft": __version__}}
        write_record(staging, {"method": "converted", **record})
        files = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
        notes = code_notes(staging)
        _refuse_taken(out)  # another process may have been quicker
    total = sum(each.num_bytes for each in tensors)
    return ConvertReport(source, out, files, len(tensors), total, tuple(tied), left, notes)


def _refuse_taken(out: Path) -> None:
    if os.path.lexists(out):
        raise RunFolderError("is there already, and nothing is written over", where=out, remedy=ANOTHER)


def _ties(weights: PickledWeights) -> Mapping[str, str]:
    """The tensors of the model whose numbers are another's, by their names; none of an adapter or an unknown type."""
    if weights.is_adapter or not (weights.folder / "config.json").is_file():
        return {}
    try:
        config = load_config(ModelSection(name_or_path=str(weights.folder)), None)
        return {**meta_model(config).all_tied_weights_keys}
    except ModelError:  # such tensors are written apart, each whole
        return {}


def _write(weights: PickledWeights, staging: Path, observer: Observer) -> tuple[dict[str, str], list[str]]:
    """Write each file; the sha256 of each tensor by its name, and the names of those that are tied."""
    ties, sums, tied = _ties(weights), dict[str, str](), list[str]()
    before, total = 0, weights.num_bytes
    for file, name in weights.files.items():

        def tell(done: int, before: int) -> None:
            observer(Progress("bytes converted", min(before + done, total), total))

        written = rewritten(file.absolute(), staging.absolute() / name, ties, partial(tell, before=before))
        if twice := sorted(sums.keys() & written["sums"].keys()):
            raise ModelError(f"the tensor {twice[0]} stands in another file too", where=file)
        sums |= written["sums"]
        tied += written["tied"]
        before += file.stat().st_size
    if absent := sorted(weights.listed.keys() - sums.keys() - set(tied)):
        message = f"no file holds {listed(absent)}, which the index lists"
        raise ModelError(message, where=weights.folder / MODEL_INDEX)
    return sums, tied


def _verified(staging: Path, weights: PickledWeights, sums: Mapping[str, str], tied: list[str]) -> list[TensorHeader]:
    """Read back what was written, and compare it with what was read.

    Raises:
        VerificationError: It is not the same.
    """
    headers = {name: header for file in weights.files.values() for name, header in headers_of(staging / file).items()}
    found = {name: hashlib.sha256(raw_bytes(mapped_tensor(header))).hexdigest() for name, header in headers.items()}
    wrong = [name for name in sums if found.get(name) != sums[name]]
    if wrong or headers.keys() != sums.keys():
        message = f"{listed(wrong or sorted(headers.keys() ^ sums.keys()))} was written otherwise than it was read"
        raise VerificationError(message, where=weights.folder, remedy="Try another disk.")
    if len(weights.files) > 1:
        places = {name: header.file.name for name, header in headers.items()}
        write_index(staging, places, sum(header.num_bytes for header in headers.values()))
    return list(headers.values())


def _copy_company(weights: PickledWeights, staging: Path) -> tuple[str, ...]:
    """Copy what is needed beside the weights; the names of what is not."""
    folder = weights.folder
    taken = {file for pattern in COMPANY for file in folder.glob(pattern) if file.is_file()}
    for file in taken:
        if file.name not in (MODEL_INDEX, INDEX):
            shutil.copyfile(file, staging / file.name)
    known = {file.name for file in (*taken, *weights.files)}
    return tuple(sorted({file.name for file in folder.iterdir() if not file.name.startswith(".")} - known))
