"""The folder of a merged model: where it may be, and what lies in it beside the weights.

What may not be written over is refused before anything is read, and what is written appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.errors import RunFolderError
from loraft.io.atomic import atomic_dir, read_json, write_json
from loraft.io.checksums import RECORD, write_record
from loraft.io.disk_space import require_free_bytes
from loraft.merging.merge_report import REPORT, MergeReport, merged_card
from loraft.merging.prepare_merge import Merge
from loraft.merging.write_weights import plan_files
from loraft.models.foreign_code import drop_code
from loraft.models.load_model import load_tokenizer
from loraft.models.registry import FAMILIES
from loraft.version import __version__

TOKENIZER = (
    "tokenizer*.json", "vocab.*", "merges.txt", "*.model", "*.spm", "tekken.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.*",
)  # fmt: skip
GENERATION = ("generation_config.json",)
OF_ITS_OWN_TOOLS = ("_name_or_path", "quantization_config")
"""Keys of config.json that do not hold for a merged model: where the base lay, how it was stored."""
OF_SOURCES = ("source_prefix", "source_lang", "target_lang")
"""What an adapter's record says of the sources that it was trained with."""
SMALL_FILES_BYTES = 32 << 20


def chosen_folder(target: ResolvedTarget, given: str | None) -> Path:
    """Where the merged model goes when nobody says: `merged` beside the adapter.

    For a checkpoint it is in the run's folder, and for an adapter of the Hub in the current one: neither a checkpoint
    nor the Hub's cache is a place to leave a model in.

    Args:
        target: The base with its adapters.
        given: What names the first adapter.
    """
    folder = target.adapters[0].folder
    if given is not None and not os.path.exists(Path(given).expanduser()):  # asks without raising
        return Path(f"{given.rpartition('/')[2]}-merged")
    holder = folder.parent
    if holder.parent.name == "checkpoints":
        return holder.parent.parent / f"merged-{holder.name}"
    return holder / "merged"


@contextmanager
def merged_folder(merge: Merge, out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder to write into; on leaving without an error it becomes `out`.

    Raises:
        RunFolderError: `out` is taken, or lies where the base or an adapter does.
        ResourceError: The disk is too small for the weights.
        DiskFullError: The disk filled up all the same.
    """
    out = out.expanduser().resolve()
    _refuse_among_what_is_read(merge, out)
    _refuse_taken(out, overwrite=overwrite)
    needed = SMALL_FILES_BYTES + sum(slot.num_bytes for slots in plan_files(merge).values() for slot in slots)
    there = next(parent for parent in out.parents if parent.exists())
    require_free_bytes(there, needed, "the merged model", remedy="Free some space, or name an `out` on another disk.")
    try:
        with atomic_dir(out) as staging:
            yield staging
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else str(out)
        raise RunFolderError(f"cannot be written or read: {error.strerror or error}", where=where) from error


def _refuse_among_what_is_read(merge: Merge, out: Path) -> None:
    for what, folder in [("base", merge.folder), *(("adapter", each.files.folder) for each in merge.adapters)]:
        read = folder.resolve()
        if out == read or out.is_relative_to(read) or read.is_relative_to(out):
            raise RunFolderError(
                f"the merged model would be in one place with the {what} ({folder})",
                where=str(out),
                remedy="Name another folder as `out`.",
            )


def _refuse_taken(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() in (".gguf", ".safetensors", ".bin"):
        raise RunFolderError(
            f"would be a folder: a merged model is written in transformers' format, and not as a {out.suffix} file",
            where=str(out),
            remedy=f"Name a folder as `out`, such as {out.stem}; "
            "llama.cpp's convert_hf_to_gguf.py makes a .gguf of it.",
        )
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise RunFolderError("is a file, not a folder", where=str(out), remedy="Name another folder as `out`.")
    if not any(out.iterdir()):
        return
    if not (out / REPORT).is_file():
        raise RunFolderError(
            f"holds something else than a merged model (there is no {REPORT})",
            where=str(out),
            remedy="Name another folder as `out`.",
        )
    if not overwrite:
        raise RunFolderError(
            "holds a merged model already", where=str(out), remedy="Replace it by `overwrite`, or name another `out`."
        )


def write_company(merge: Merge, folder: Path) -> None:
    """Write what using the weights needs: config, tokenizer with its template, generation defaults, system prompt."""
    write_json(folder / "config.json", _config(merge))
    target = merge.target
    adapter = target.adapters[0]
    has_tokenizer = adapter.tokenizer is not None
    _copy(adapter.folder if has_tokenizer else merge.folder, TOKENIZER, folder)
    has_defaults = (adapter.folder / GENERATION[0]).is_file()
    if not merge.labels:
        _copy(adapter.folder if has_defaults else merge.folder, GENERATION, folder)
    record = merge.adapters[0].files.record or {}
    write_json(
        folder / RECORD,
        {
            "base": {"name": shown(target.base), "revision": target.revision},
            "method": "merged",
            "system_prompt": target.metadata.system_prompt,
            "plain": target.metadata.plain,
            "task": record.get("task"),
            **{key: record[key] for key in OF_SOURCES if key in record},
            **({"labels": list(merge.labels)} if merge.labels else {}),
            "versions": {"loraft": __version__},
        },
    )
    drop_code(folder)


def write_report(folder: Path, report: MergeReport) -> None:
    """Write the report, and the model card that says the same to people; what there is now is what was merged."""
    write_json(folder / REPORT, report.as_dict())
    write_record(folder, read_json(folder / RECORD))
    (folder / "README.md").write_text(merged_card(report, __version__), encoding="utf-8")


def _config(merge: Merge) -> dict[str, object]:
    """config.json as the base has it, without what no longer holds, and with what is new."""
    values = {
        key: value for key, value in read_json(merge.folder / "config.json").items() if key not in OF_ITS_OWN_TOOLS
    }
    values["dtype"] = merge.dtype_name
    if "torch_dtype" in values:
        values["torch_dtype"] = merge.dtype_name
    values.setdefault("architectures", [merge.architecture])
    if merge.labels:
        values |= {
            "architectures": [merge.architecture],
            "id2label": dict(enumerate(merge.labels)),
            "label2id": {label: number for number, label in enumerate(merge.labels)},
            "pad_token_id": load_tokenizer(merge.model, FAMILIES).pad_token_id,
            "problem_type": "single_label_classification",
        }
    if merge.plan.untied:
        values["tie_word_embeddings"] = False
    return values


def _copy(source: Path, patterns: tuple[str, ...], folder: Path) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
