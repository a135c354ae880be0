"""From a name to a folder, or to one sentence that says why not."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects

from loraft.errors import ModelError
from loraft.io.paths import cache_folder
from loraft.models import sources
from loraft.models.sources import resolve, resolve_tokenizer
from tests.tiny import save_tiny, tiny_tokenizer


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    assert resolve(str(folder)) == folder
    assert resolve(str(folder), weights=False) == folder


def test_a_folder_without_config_or_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        resolve(str(tmp_path))
    assert resolve(str(tmp_path), weights=False) == tmp_path


def test_an_adapter_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a base model"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("inside", "remedy"), [("adapter/adapter_config.json", "lora.start_from: "), ("model/config.json", "trained: ")]
)
def test_a_run_is_not_a_base_and_what_it_trained_is_named(tmp_path: Path, inside: str, remedy: str) -> None:
    (tmp_path / inside).parent.mkdir()
    (tmp_path / inside).write_text("{}")
    with pytest.raises(ModelError, match="is a run, not a base model") as caught:
        resolve(str(tmp_path))
    assert str(caught.value.problems[0].remedy).endswith(f"{remedy}{(tmp_path / inside).parent}")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    with pytest.raises(ModelError, match="is a file") as caught:
        resolve(str(folder / "model.safetensors"))
    assert f"Name the folder: {folder}" in str(caught.value)


def test_only_hub_models_have_revisions(tmp_path: Path) -> None:
    for name in (str(save_tiny(tmp_path / "model")), "builtin:smollm2-135m-instruct"):
        with pytest.raises(ModelError, match="only Hub models have revisions"):
            resolve(name, "main")


def test_an_unknown_builtin_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no builtin model 'smollm2'") as caught:
        resolve("builtin:smollm2")
    assert "Did you mean builtin:smollm2-135m-instruct?" in str(caught.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "a/b/c", "no such name", "folder/model.gguf/x"])
def test_what_can_be_no_hub_id_is_looked_for_as_a_file_alone(name: str) -> None:
    with pytest.raises(ModelError, match="there is no file or folder") as caught:
        resolve(name)
    assert "builtin:smollm2-135m-instruct" in str(caught.value)


def test_offline_an_unknown_hub_id_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"there is no folder 'nobody/nothing-0', and the Hub is off") as caught:
        resolve("nobody/nothing-0")
    assert "\n" not in caught.value.problems[0].message


def hub_error(kind: type[Exception]) -> Exception:
    return kind("x", response=Mock(headers={}))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_error(RepositoryNotFoundError), "no such model"),
        (hub_error(GatedRepoError), "accepted its terms"),
        (hub_error(RevisionNotFoundError), "no revision 'v9'"),
    ],
)
def test_what_the_hub_answers_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def refuses(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(sources, "snapshot_download", refuses)
    with pytest.raises(ModelError, match=said):
        resolve("org/name", "v9")


def test_of_a_hub_model_only_the_files_that_are_needed_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "snapshot")
    asked = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        files = ["config.json", "model-1.safetensors", "consolidated.safetensors", "model.bin", "onnx/config.json"]
        wanted = [*filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)]
        asked.append((revision, wanted))
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    assert resolve("org/name", "v1") == folder
    assert resolve("org/name", weights=False) == folder
    assert resolve_tokenizer("org/name") == folder
    assert asked == [("v1", ["config.json", "model-1.safetensors"]), *[(None, ["config.json"])] * 2]


def test_c41_a_hub_model_with_pickles_only_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path))
    files = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(sources.HfApi, "list_repo_files", lambda *_, **__: files)
    for weights in (True, False):
        with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model\.bin\)"):
            resolve("org/name", weights=weights)
    files[1:] = ["model.fp16.safetensors"]
    for weights in (True, False):
        with pytest.raises(ModelError, match=r"reads no other weights, such as model\.fp16\.safetensors"):
            resolve("org/name", weights=weights)
    files[1:] = ["model.safetensors.index.json", "model-1.safetensors"]
    assert resolve("org/name", weights=False) == tmp_path, "they are fetched later"


def test_a_hub_model_of_gguf_files_alone_is_told_how_they_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path / "absent"))  # as of no file
    monkeypatch.setattr(sources.HfApi, "list_repo_files", lambda *_, **__: ["README.md", "x.Q4_K_M.gguf"])
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        resolve("org/name", weights=False)
    assert "hf download org/name x.Q4_K_M.gguf" in str(caught.value.problems[0].remedy)


def test_a_hub_that_does_not_answer_lists_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise sources.NETWORK_ERROR("Name or service not known")

    monkeypatch.setattr(sources.HfApi, "list_repo_files", silent)
    assert sources.files_at_hub("org/name", None) == []
    assert sources.files_at_hub("a/b/c", None) == []


def test_a_tokenizer_needs_no_config(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert resolve_tokenizer(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError) as caught:
        resolve_tokenizer("nobody/nothing-0")
    assert caught.value.problems[0].key == "model.tokenizer"


def test_the_cache_is_where_loraft_cache_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("LORAFT_CACHE")
    assert cache_folder().name == "loraft"
