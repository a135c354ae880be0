"""An adapter on the Hub, out of the Hub's own cache: the Hub itself is not reached."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from loraft.adapters.resolve_target import resolve_target
from loraft.errors import AdapterError, ModelError
from loraft.inference.requests import ModelRequest
from loraft.inference.session import open_session
from loraft.io.hub_files import adapter_from_hub
from loraft.io.kept_files import kept_file
from tests.inference.voices import adapter_in, base_in, logits

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(hub: Path, name: str) -> Path:
    """The folder of a repository in the cache, as after a download."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / COMMIT


@pytest.mark.slow
def test_an_adapter_and_its_base_by_their_hub_ids(hub: Path, tmp_path: Path) -> None:
    base_in(snapshot(hub, "org/base"))
    adapter_in(snapshot(hub, "someone/adapter"), "org/base")
    here = open_session(ModelRequest(str(adapter_in(tmp_path / "here", "org/base"))))
    session = open_session(ModelRequest("someone/adapter"))
    assert session.loaded.name == "org/base"
    assert torch.equal(logits(session.model), logits(here.model))
    named = open_session(ModelRequest("org/base", ["mine=someone/adapter"]))
    assert list(named.voices) == ["mine", "base"]
    assert torch.equal(logits(named.model), logits(here.model))


def test_somebody_elses_adapter_without_a_record_is_shown_with_its_base(hub: Path, tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    folder = adapter_in(snapshot(hub, "someone/adapter"), base)
    for name in ("loraft.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    session = open_session(ModelRequest("someone/adapter"))
    assert any(f"names {base} as its base" in note for note in session.notes)
    assert session.voice().tokenizer is session.voice("base").tokenizer


def test_a_repository_that_is_not_there_or_holds_no_adapter_is_none(hub: Path) -> None:
    base_in(snapshot(hub, "org/base"))
    assert adapter_from_hub("org/base") is None
    assert adapter_from_hub("org/absent") is None
    assert resolve_target("org/base").adapters == ()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        open_session(ModelRequest("org/absent"))
    with pytest.raises(AdapterError, match="is no adapter, or the Hub is off"):
        resolve_target("org/base", ["org/absent"])


def test_c41_a_pickled_adapter_is_named_and_not_opened(hub: Path, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "it-ran"),)

    folder = adapter_in(snapshot(hub, "someone/adapter"), base_in(tmp_path / "base"))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is not read"):
        open_session(ModelRequest("someone/adapter"))
    assert not (tmp_path / "it-ran").exists()


def test_progress_bars_of_the_hub_are_left_as_they_were(hub: Path) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    adapter_from_hub("org/absent")
    assert are_progress_bars_disabled() == before


def test_the_cache_is_made_for_its_user_alone_and_one_that_is_there_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "home" / "cache"))
    kept_file("a" * 8, "rows.jsonl", lambda place: place.touch())
    assert (tmp_path / "home/cache").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    monkeypatch.setenv("LORAFT_CACHE", str(tmp_path / "shared"))
    kept_file("a" * 8, "rows.jsonl", lambda place: place.touch())
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755
