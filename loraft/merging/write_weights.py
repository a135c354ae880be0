"""Adapters folded into their base, from files to files: the folder of a merged model, with its company."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.adapters.resolve_target import resolve_target
from loraft.errors import RunFolderError
from loraft.figures import listed
from loraft.io.atomic import atomic_dir, output_errors, read_json, write_json
from loraft.io.checksums import MERGE_REPORT, RECORD, others_in
from loraft.io.resources import require_free_bytes
from loraft.merging.merged_tensors import MergedTensors, plan_files, working_ahead
from loraft.merging.prepare_merge import Merge, weighted
from loraft.models.hf_config import copy_processors, drop_code
from loraft.models.load_model import load_tokenizer
from loraft.models.safetensors_index import Slot, write_index, write_shard
from loraft.version import __version__


def write_weights(merge: Merge, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Write the merged tensors into `folder`, which is empty.

    `progress` is told the bytes that are written, and all there will be, which come back too.

    Raises:
        NonFiniteError: A merged tensor holds NaN or infinity.
    """
    tensors = MergedTensors(merge)
    files = tensors.files
    total = sum(slot.num_bytes for slots in files.values() for slot in slots)
    written = 0
    with working_ahead() as run:

        def pieces(slot: Slot) -> Iterator[Tensor]:
            nonlocal written
            for piece in tensors.pieces(slot, run):
                yield piece
                written += piece.numel() * piece.element_size()
                progress(written, total)

        for file, slots in files.items():
            write_shard(folder / file, slots, pieces)
    if len(files) > 1:
        write_index(folder, {slot.name: file for file, slots in files.items() for slot in slots}, total)
    return total


TOKENIZER = (
    "tokenizer*.json", "vocab.*", "merges.txt", "*.model", "*.spm", "tekken.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.*",
)  # fmt: skip
GENERATION = "generation_config.json"
OF_ITS_OWN_TOOLS = ("_name_or_path", "quantization_config")
"""Keys of config.json that do not hold for a merged model: where the base lay, how it was stored."""
OF_READING = ("source_prefix", "source_lang", "target_lang", "special_tokens_in_text", "pairs", "cut_to")
"""What an adapter's record says of how the texts that it was trained with were read."""
SMALL_FILES_BYTES = 32 << 20
ANOTHER_FOLDER = "Name another folder as `out`."


def means_a_base(word: str, adapters: Sequence[str]) -> bool:
    """Whether a single word beside `adapters` names a base, and not the folder to write.

    A model that is there is one, and so is the name that the adapters have for theirs.
    """
    if word.startswith("builtin:") or word.endswith(".gguf"):
        return True
    path = Path(word).expanduser()
    if os.path.exists(path):
        return (path / "config.json").is_file() and not (path / MERGE_REPORT).is_file()
    found = [resolve_target(weighted(each)[0]) for each in adapters]
    return any(adapter.base == word for each in found for adapter in each.adapters)


def chosen_folder(target: ResolvedTarget, given: str | None) -> Path:
    """Where the merged model goes when nobody says: `merged` beside the adapter, which `given` names.

    For a checkpoint it is in the run's folder, and for an adapter of the Hub in the current one: neither a checkpoint
    nor the Hub's cache is a place to leave a model in.
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
    out = out.expanduser()
    if out.is_symlink() and not out.exists():
        message = f"is a link to {out.readlink()}, where nothing is"
        raise RunFolderError(message, where=out, remedy=ANOTHER_FOLDER)
    out = out.resolve()
    read = [("base", merge.target.model.folder), *(("adapter", each.folder) for each in merge.target.adapters)]
    for what, folder in read:
        if out.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(out):
            message = f"the merged model would be in one place with the {what} ({folder})"
            raise RunFolderError(message, where=out, remedy=ANOTHER_FOLDER)
    _refuse_taken(out, overwrite=overwrite)
    needed = SMALL_FILES_BYTES + sum(slot.num_bytes for slots in plan_files(merge).values() for slot in slots)
    remedy = "Free some space, or name an `out` on another disk."
    require_free_bytes(out.parent, needed, "the merged model", remedy=remedy)
    with output_errors(out), atomic_dir(out, remedy=remedy, needed=needed) as staging:
        yield staging


def _refuse_taken(out: Path, *, overwrite: bool) -> None:
    remedy = ANOTHER_FOLDER
    if out.suffix.lower() == ".gguf":
        message = "would be a folder: a merged model is written in transformers' format, and not as a .gguf file"
        remedy = f"Let `loraft.export` write it: it folds the adapter in as well. Or name a folder, such as {out.stem}."
    elif out.suffix.lower() in (".safetensors", ".bin"):
        message = (
            f"would be a folder: a merged model is written in transformers' format, and not as a {out.suffix} file"
        )
        remedy = f"Name a folder as `out`, such as {out.stem}."
    elif not out.is_dir() and (out.exists() or out.is_symlink()):
        message = "is a file, not a folder"
    elif not out.is_dir() or not any(out.iterdir()):
        return
    elif not (out / MERGE_REPORT).is_file():
        message = f"holds something else than a merged model (there is no {MERGE_REPORT})"
    elif not overwrite:
        message, remedy = "holds a merged model already", "Replace it by `overwrite`, or name another `out`."
    elif others := others_in(out):
        message = f"holds {listed(others)} besides the merged model"
        remedy = "Move that elsewhere, or name another folder as `out`."
    else:
        return
    raise RunFolderError(message, where=out, remedy=remedy)


def write_company(merge: Merge, folder: Path) -> None:
    """Write what using the weights needs: config, tokenizer with its template, generation defaults, system prompt."""
    write_json(folder / "config.json", _config(merge))
    target, adapter, base = merge.target, merge.target.adapters[0], merge.target.model.folder
    copied = [(pattern, adapter.folder if adapter.tokenizer else base) for pattern in TOKENIZER]
    if not merge.labels:
        copied.append((GENERATION, adapter.folder if (adapter.folder / GENERATION).is_file() else base))
    for file in (file for pattern, source in copied for file in source.glob(pattern)):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    copy_processors(base, folder)
    record = merge.adapters[0].files.record or {}
    write_json(
        folder / RECORD,
        {
            "base": {"name": shown(target.base), "revision": target.revision},
            "method": "merged",
            "system_prompt": target.metadata.system_prompt,
            "plain": target.metadata.plain,
            "task": record.get("task"),
            **{key: record[key] for key in OF_READING if key in record},
            **({"labels": list(merge.labels)} if merge.labels else {}),
            "versions": {"loraft": __version__},
        },
    )
    drop_code(folder)


def _config(merge: Merge) -> dict[str, object]:
    """config.json as the base has it, without what no longer holds, and with what is new."""
    written = read_json(merge.target.model.folder / "config.json")
    values = {key: value for key, value in written.items() if key not in OF_ITS_OWN_TOOLS}
    values["dtype"] = merge.dtype_name
    if "torch_dtype" in values:
        values["torch_dtype"] = merge.dtype_name
    values.setdefault("architectures", [merge.architecture])
    if merge.labels:
        values |= {
            "architectures": [merge.architecture],
            "id2label": dict(enumerate(merge.labels)),
            "label2id": {label: number for number, label in enumerate(merge.labels)},
            "pad_token_id": load_tokenizer(merge.target.model, None).pad_token_id,
            "problem_type": "single_label_classification",
        }
    if merge.plan.untied or merge.base.notes:
        values["tie_word_embeddings"] = False
    if merge.grown:
        inner: Any = values if "vocab_size" in values else values.get("text_config", values)
        inner["vocab_size"] = max(merge.target.model.tokens) + 1
    return values
