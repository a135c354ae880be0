"""Files are what was written, or it is said which is not; a large one is hashed once for as long as it stays so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loraft.errors import AdapterError, ModelError
from loraft.io import checksums as seals
from loraft.io.checksums import altered_settings, fault, is_weights, known_sha256_of, refuse_altered, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "inside").mkdir(parents=True)
    (made / "a.json").write_text("{}")
    (made / "inside/b.safetensors").write_bytes(bytes(1000))
    (made / "README.md").write_text("read me")
    return made


def test_what_is_as_it_was_has_no_fault(folder: Path) -> None:
    sealed = seal(folder, ["README.md"])
    assert set(sealed) == {"a.json", "inside/b.safetensors"}
    assert sealed["a.json"] == {
        "bytes": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    }  # fmt: skip
    assert fault(folder, sealed) is None


def test_each_fault_names_its_file(folder: Path) -> None:
    sealed = seal(folder)
    weights = folder / "inside/b.safetensors"
    weights.write_bytes(bytes(999) + b"\1")
    assert fault(folder, sealed) == ("inside/b.safetensors", "has other contents than were written")
    assert fault(folder, sealed, lambda name: not is_weights(name)) is None
    weights.write_bytes(b"")
    assert fault(folder, sealed) == ("inside/b.safetensors", "has 0 bytes instead of 1,000")
    weights.unlink()
    assert fault(folder, sealed) == ("inside/b.safetensors", "is missing")


def test_a_large_file_is_hashed_once_while_it_stays_as_it_is(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "REMEMBERED_FROM", 500)
    sealed = seal(folder)
    hashed: list[str] = []
    real = seals.sha256_of
    monkeypatch.setattr(seals, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert fault(folder, sealed) is None
    assert fault(folder, sealed) is None
    assert sorted(hashed) == ["README.md", "README.md", "a.json", "a.json", "b.safetensors"]
    weights = folder / "inside/b.safetensors"
    weights.write_bytes(bytes(999) + b"\1")
    os.utime(weights, ns=(1, 1))
    assert fault(folder, sealed) is not None
    assert len(list(cache.rglob("*.json"))) == 1


def test_a_cache_that_cannot_be_written_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "REMEMBERED_FROM", 0)
    monkeypatch.setenv("LORAFT_CACHE", str(folder / "a.json"))
    sealed = seal(folder)
    assert fault(folder, sealed) is None


def test_a_folder_that_another_tool_wrote_is_taken(folder: Path) -> None:
    refuse_altered(folder, lambda _: True, ModelError)
    (folder / "loraft.json").write_text('{"base": {}}')  # an earlier loraft's
    refuse_altered(folder, lambda _: True, ModelError)


def test_an_altered_file_is_refused_with_what_can_be_done_and_altered_settings_are_told(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "loraft.json").write_text(json.dumps({"files": seal(folder)}))
    refuse_altered(folder, lambda _: True, AdapterError)
    assert altered_settings(folder) == ()
    (folder / "config.json").write_text('{"a": 2}')
    refuse_altered(folder, lambda _: True, AdapterError)
    (said,) = altered_settings(folder)
    assert said.startswith(f"{folder / 'config.json'} was changed")
    for lost in ("emptied", "missing"):
        (folder / "config.json").write_text("") if lost == "emptied" else (folder / "config.json").unlink()
        with pytest.raises(AdapterError, match=r"config\.json: is missing or empty"):
            refuse_altered(folder, lambda _: True, AdapterError)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "a.json").write_text("[]")
    with pytest.raises(AdapterError) as caught:
        refuse_altered(folder, lambda _: True, AdapterError)
    (problem,) = caught.value.problems
    assert problem.where == str(folder / "a.json")
    assert "take a.json out of `files`" in str(problem.remedy)
    refuse_altered(folder, is_weights, AdapterError)


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"files": []}', '{"files": {"a.json": 3}}', '{"files": {"a.json": {}}}']
)
def test_a_record_that_is_none_is_refused(folder: Path, record: str) -> None:
    (folder / "loraft.json").write_text(record)
    with pytest.raises(ModelError, match="what its files were cannot be read"):
        refuse_altered(folder, lambda _: True, ModelError)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    first = known_sha256_of(file)
    file.write_bytes(b"another")
    assert known_sha256_of(file) != first
