"""A file of pickled tensors as safetensors: the same numbers, what is tied once, and anything else refused."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraft.converting.unpickled_file import rewrite
from loraft.errors import ModelError
from tests.converting.planted import Planted, planted

TABLE = torch.arange(12.0).reshape(3, 4)


def written(tensors: Any, folder: Path, ties: dict[str, str] | None = None, **how: Any) -> dict[str, torch.Tensor]:
    """What is read from the file that is made of `tensors`."""
    torch.save(tensors, folder / "in.bin", **how)
    rewrite(folder / "in.bin", folder / "out.safetensors", ties or {}, lambda _: None)
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("zipped", [True, False], ids=["as torch writes", "as torch wrote before 1.6"])
def test_every_number_is_the_same(zipped: bool, tmp_path: Path) -> None:
    tensors = OrderedDict(
        table=TABLE,
        turned=TABLE.t(),
        part=TABLE[1:, ::2],
        scalar=torch.tensor(3.0),
        none=torch.zeros(0, 4),
        half=TABLE.half(),
        brain=TABLE.bfloat16(),
        whole=torch.arange(5),
        trained=torch.nn.Parameter(TABLE.clone()),
    )
    found = written(tensors, tmp_path, _use_new_zipfile_serialization=zipped)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_sums_are_those_of_the_numbers(tmp_path: Path) -> None:
    torch.save({"a": TABLE.t()}, tmp_path / "in.bin")
    told: list[int] = []
    done = rewrite(tmp_path / "in.bin", tmp_path / "out.safetensors", {}, told.append)
    assert done["sums"] == {"a": hashlib.sha256(TABLE.t().contiguous().numpy().tobytes()).hexdigest()}
    assert told == [48] == [done["bytes"]]


def test_what_the_model_ties_is_written_once_and_what_only_shares_memory_is_written_whole(tmp_path: Path) -> None:
    tensors = {"shared.weight": TABLE, "lm_head.weight": TABLE, "other.weight": TABLE, "part": TABLE[0]}
    found = written(tensors, tmp_path, {"lm_head.weight": "shared.weight"})
    assert found.keys() == {"shared.weight", "other.weight", "part"}
    assert torch.equal(found["other.weight"], TABLE)


def test_what_is_tied_and_holds_other_numbers_is_kept(tmp_path: Path) -> None:
    found = written(
        {"shared.weight": TABLE, "lm_head.weight": TABLE + 1}, tmp_path, {"lm_head.weight": "shared.weight"}
    )
    assert torch.equal(found["lm_head.weight"], TABLE + 1)


def test_names_without_the_first_part_are_tied_too(tmp_path: Path) -> None:
    ties = {"model.encoder.embed.weight": "model.shared.weight"}
    assert written({"encoder.embed.weight": TABLE, "shared.weight": TABLE}, tmp_path, ties).keys() == {"shared.weight"}


def test_the_state_dict_of_a_lightning_checkpoint_is_taken(tmp_path: Path) -> None:
    assert written({"epoch": 3, "state_dict": {"a": TABLE}}, tmp_path).keys() == {"a"}


def changed(change: Callable[[dict[str, bytes]], None], compressed: bool = False) -> Callable[[Path], bytes]:
    """A file as torch writes it whose parts were changed afterwards."""

    def made(_: Path) -> bytes:
        stream = io.BytesIO()
        torch.save({"a": TABLE}, stream)
        with zipfile.ZipFile(stream) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        change(parts)
        again = io.BytesIO()
        with zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return again.getvalue()

    return made


def saved(value: Any) -> Callable[[Path], bytes]:
    def made(_: Path) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    return made


def of_planted(ran: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": TABLE, "b": Planted(ran)}, stream)
    return stream.getvalue()


def flipped(_: Path) -> bytes:
    raw = bytearray(saved({"a": TABLE})(_))
    place = raw.index(TABLE.numpy().tobytes())
    raw[place + 5] ^= 1
    return bytes(raw)


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a pickle that runs": (planted, "asks for .*pathlib.*it was not run|is no file of tensors"),
    "an archive that runs": (of_planted, "asks for .*it was not run"),
    "os.system": (lambda _: b"cos\nsystem\n(S'true'\ntR.", "is no file of tensors|asks for"),
    "eval": (lambda _: pickle.dumps(eval), "asks for|is no file"),
    "getattr in the archive": (saved({"a": getattr}), r"asks for .*getattr"),
    "nothing": (lambda _: b"", "is no file of tensors"),
    "rubbish": (lambda _: b"\x80\x04rubbish" * 50, "is no file of tensors"),
    "text": (lambda _: b'{"a": 1}', "is no file of tensors: Unsupported operand"),
    "the head of an archive": (lambda _: b"PK\x03\x04", "archive that cannot be read"),
    "half": (lambda _: saved({"a": TABLE})(_)[:600], "archive that cannot be read"),
    "one bit": (flipped, "does not agree with its checksum"),
    "compressed": (changed(lambda _: None, compressed=True), "torch compresses nothing"),
    "a bomb": (changed(lambda parts: parts.update(x=bytes(10_000_000)), compressed=True), "torch compresses nothing"),
    "numbers cut short": (
        changed(lambda parts: parts.update({"archive/data/0": b"\0" * 8})), "no part of the 48 bytes"
    ),
    "a list": (saved([TABLE]), "no tensors by name: it is of type list"),
    "a number among tensors": (saved({"a": TABLE, "step": 3}), "'step' in it is no tensor"),
    "no names": (saved({3: TABLE}), "3 in it is no tensor"),
    "no tensors": (saved({}), "no tensors by name"),
    "a header's name": (saved({"__metadata__": TABLE}), "__metadata__ in it is no tensor"),
    "sparse": (saved({"a": TABLE.to_sparse()}), "'a' in it is no tensor|sparse tensor"),  # torch 2.15 warns of it
    "without numbers": (saved({"a": torch.ones(2, device="meta")}), "'a' in it is no tensor"),
    "complex": (saved({"a": torch.ones(2, dtype=torch.complex64)}), "numbers of a type"),
    "one number, a billion times": (saved({"a": torch.ones(1).expand(10**9)}), "would become 4,000,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_c41_anything_else_is_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    make, said = HOSTILE[name]
    (tmp_path / "in.bin").write_bytes(make(tmp_path / "ran"))
    with pytest.raises(ModelError, match=said) as caught:
        rewrite(tmp_path / "in.bin", tmp_path / "out.safetensors", {}, lambda _: None)
    assert caught.value.problems[0].where == str(tmp_path / "in.bin")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.bin"]
