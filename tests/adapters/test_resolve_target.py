"""What a target means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.resolve_target import base_named_by, resolve_target, resolve_to_look
from loraft.errors import AdapterError, ModelError
from loraft.models.sources import resolve


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_adapter(folder: Path, base: str | None = "org/base", record: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "revision": "v1"}))
    (folder / "tokenizer_config.json").write_text("{}")
    if record is not None:
        (folder / "loraft.json").write_text(json.dumps(record))
    return folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["org/model", "gpt2", "builtin:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M"])
def test_a_base_by_its_name(name: str) -> None:
    assert resolve_target(name) == ResolvedTarget(name)


def test_a_base_on_disk(here: Path) -> None:
    make_model(here / "models/mine")
    (here / "model.gguf").touch()
    assert resolve_target("models/mine") == ResolvedTarget("models/mine")
    assert resolve_target("model.gguf") == ResolvedTarget("model.gguf")


@pytest.mark.parametrize("target", ["runs/a", "runs/a/adapter", "runs/a/checkpoints/step-000100", "train.yaml"])
def test_an_adapter_by_its_folder_run_checkpoint_or_config(here: Path, target: str) -> None:
    for place in ("runs/a/adapter", "runs/a/checkpoints/step-000100/adapter"):
        make_adapter(here / place)
    (here / "train.yaml").write_text(
        "model: {name_or_path: x}\ndata: {train: t.jsonl}\ntraining: {output_dir: runs/a}\n"
    )
    found = resolve_target(target)
    inside = Path("runs/a/adapter") if target == "train.yaml" else Path(target)
    assert found.adapter == (inside if inside.name == "adapter" else inside / "adapter")
    assert (found.base, found.revision, found.model.section.tokenizer) == ("org/base", "v1", str(found.adapter))
    assert found.quantization is None
    assert found.model.section.name_or_path == "org/base"


def test_a_config_without_output_dir_means_its_newest_run(here: Path) -> None:
    for number in (2, 10):
        make_adapter(here / f"runs/train-{number}/adapter")
    (here / "train.yaml").write_text("model: {name_or_path: x}\ndata: {train: t.jsonl}\n")
    assert resolve_target("train.yaml").adapter == Path("runs/train-10/adapter")


def test_a_run_that_trained_every_weight(here: Path) -> None:
    make_model(here / "runs/full/model")
    assert resolve_target("runs/full") == ResolvedTarget("runs/full/model")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("result", ["adapter", "model"])
def test_a_result_of_before_its_run_was_gone_on_with_is_told(here: Path, result: str, finished: bool) -> None:
    (make_adapter if result == "adapter" else make_model)(here / "runs/a" / result)
    for step, ended in ((999_999, True), (1_000_000, finished)):
        place = here / f"runs/a/checkpoints/step-{step:06}"
        place.mkdir(parents=True)
        (place / "state.json").write_text(json.dumps({"state": {"finished": ended}}))
    notes = resolve_target("runs/a").notes
    assert [("step-1000000" in note, f"runs/a/{result}" in note) for note in notes] == [(True, True)] * (not finished)


def recorded(fingerprint: str = "sha256:1") -> dict[str, object]:
    return {"base": {"fingerprint": fingerprint}}


def test_c43_another_base_than_the_recorded_one_needs_base_model_and_is_told(here: Path) -> None:
    make_adapter(here / "a")
    assert resolve_target("org/base", ["a"]) == resolve_target("a")
    with pytest.raises(AdapterError, match=r"names org/base as its base(.|\n)*`base_model='org/other'`"):
        resolve_target("org/other", ["a"])
    for found in (
        resolve_target("org/other", ["a"], base_model="org/other"),
        resolve_target("a", base_model="org/other"),
    ):
        assert (found.base, found.revision) == ("org/other", None)
        assert "org/base" in found.notes[0]


def test_c43_where_the_weights_are_recorded_they_are_compared_and_the_name_may_differ(here: Path) -> None:
    make_adapter(here / "a", record=recorded())
    found = resolve_target("org/copy", ["a"])
    assert (found.base, found.adapters[0].fingerprint) == ("org/copy", "sha256:1")
    assert "org/base" in found.notes[0]


def test_c43_an_absolute_path_in_an_adapter_of_somebody_else_is_looked_at_as_a_path_only(here: Path) -> None:
    make_adapter(here / "a", base="/etc/passwd-of-somebody")
    with pytest.raises(AdapterError, match=r"names the base /etc/passwd-of-somebody, which is not there"):
        resolve_target("a")


def test_c43_two_paths_of_one_folder_are_one_base(here: Path) -> None:
    """An adapter of peft's has the whole path of its base; to give that base by a shorter one was refused."""
    make_model(here / "models/base")
    make_adapter(here / "a", str(here / "models/base"))
    found = resolve_target("models/base", ["a"])
    assert (found.base, found.notes) == ("models/base", ())
    make_model(here / "models/other")
    with pytest.raises(AdapterError, match="`base_model='models/other'`"):
        resolve_target("models/other", ["a"])


def test_c23_a_base_that_is_gone_is_told_with_what_to_do(here: Path) -> None:
    make_adapter(here / "a", base="/nowhere/base")
    with pytest.raises(AdapterError, match=r"names the base /nowhere/base(.|\n)*`base_model=MODEL`"):
        resolve_target("a")
    make_model(here / "moved")
    assert resolve_target("a", base_model="moved").base == "moved"


@pytest.mark.parametrize("base", ["runs/t5-1/model", "models/my tiny"])
def test_a_relative_path_from_another_folder_is_no_hub_id(here: Path, base: str) -> None:
    make_adapter(here / "a", base=base)
    with pytest.raises(AdapterError, match=rf"names the base {base}, which is not there") as caught:
        resolve_target("a")
    assert "`base_model=MODEL`. A relative path is that of the folder where" in str(caught.value)


def test_a_base_that_is_neither_here_nor_at_the_hub_is_told_of_the_adapter(here: Path) -> None:
    make_adapter(here / "a", base="org/base")
    message = r"names the base org/base: there is no folder"
    with pytest.raises(AdapterError, match=message) as caught, base_named_by(resolve_target("a")):
        resolve("org/base")
    assert caught.value.problems[0].where == "a"
    assert "`base_model=MODEL`. A relative path" in str(caught.value)
    with pytest.raises(ModelError), base_named_by(resolve_target("a", base_model="org/other")):
        resolve("org/other")


def test_several_adapters_on_one_base(here: Path) -> None:
    make_adapter(here / "runs/a/adapter")
    make_adapter(here / "runs/b.2/adapter")
    found = resolve_target(None, ["one=runs/a", "two=runs/b.2/adapter"])
    assert [(each.name, each.folder) for each in found.adapters] == [
        ("one", Path("runs/a/adapter")),
        ("two", Path("runs/b.2/adapter")),
    ]
    assert (found.base, found.revision) == ("org/base", "v1")
    unnamed = resolve_target("org/base", ["runs/a", "runs/b.2/adapter"])
    assert [each.name for each in unnamed.adapters] == ["a", "b-2"]


def test_an_unnamed_folder_that_is_called_as_the_base_is_must_be_named(here: Path) -> None:
    make_adapter(here / "base")
    make_adapter(here / "b")
    with pytest.raises(AdapterError, match="'base' means the base without an adapter"):
        resolve_target(None, ["base", "b"])
    assert [each.name for each in resolve_target(None, ["one=base", "b"]).adapters] == ["one", "b"]
    assert resolve_target(None, ["base"]).adapters[0].name == "default"


def test_several_adapters_of_different_bases(here: Path) -> None:
    make_adapter(here / "a", record=recorded())
    make_adapter(here / "b", base="org/renamed", record=recorded())
    make_adapter(here / "c", base="org/other", record=recorded("sha256:2"))
    assert resolve_target(None, ["a", "b"]).base == "org/base"
    with pytest.raises(AdapterError, match=r"c names the base org/other, and a names org/base(.|\n)*`base_model`"):
        resolve_target(None, ["a", "c"])


@pytest.mark.parametrize("name", ["../../etc", "/abs/name", "a b", "x" * 65, "x" * 5000, "a\n", "", "base", "none"])
def test_c28_a_name_that_could_be_a_path_is_refused(here: Path, name: str) -> None:
    make_adapter(here / "a")
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        resolve_target(None, [f"{name}=a"])


def test_an_adapter_of_somebody_else_by_its_hub_id(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the Hub holds it, as after a download; the Hub itself is not reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    snapshot = here / "hub/models--someone--adapter/snapshots/0123456789abcdef0123456789abcdef01234567"
    make_adapter(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    found = resolve_target("someone/adapter")
    assert found.adapter == snapshot
    assert found.base == "org/base"
    assert resolve_target(None, ["mine=someone/adapter"]).adapters[0].name == "mine"


@pytest.mark.parametrize(
    ("target", "adapter", "message"),
    [
        (None, None, "there is no model to work on"),
        ("runs/absent", None, "no file or folder runs/absent"),
        ("./absent", None, "no file or folder"),
        ("./" + "x" * 5000, None, "no file or folder"),
        ("~nobody-of-that-name/x", None, "no file or folder"),
        (None, "./" + "x" * 5000, "no file or folder"),
        (None, "org/absent", "is no adapter, or the Hub is off"),
        (None, "runs", "looked for adapter_config.json"),
        ("empty", None, "looked for adapter_config.json"),
        ("unfinished", None, r"unfinished/checkpoints/step-000002(.|\n)*'unfinished/config\.yaml'\), resume=True\)`"),
        ("absent.yaml", None, "absent.yaml"),
        ("nameless", None, "does not name a base"),
        ("a", "a", "has an adapter of its own"),
        ("org/base", "org/base", "is no adapter"),
        (None, "x=a y=a x=runs", "several adapters are called x"),
        ("broken", None, "cannot be read"),
    ],
)  # fmt: skip
def test_what_was_looked_for_is_said(here: Path, target: str | None, adapter: str | None, message: str) -> None:
    for name in ("runs", "empty", "unfinished/checkpoints/step-000001", "unfinished/checkpoints/step-000002"):
        (here / name).mkdir(parents=True)
    make_adapter(here / "a")
    make_adapter(here / "nameless", base=None)
    (make_adapter(here / "broken") / "adapter_config.json").write_text("{")
    with pytest.raises(Exception, match=message) as caught:
        resolve_target(target, adapter.split() if adapter else ())
    assert getattr(caught.value, "exit_code", None) == 2


def test_to_look_at_it_an_adapter_needs_no_base(here: Path) -> None:
    make_adapter(here / "a", base="/nowhere/base")
    make_adapter(here / "b", base=None)
    for found in (resolve_to_look("a"), resolve_to_look(None, ["a"])):
        assert (found.base, [each.folder for each in found.adapters]) == ("", [Path("a")])
        assert "/nowhere/base, which is not there" in found.notes[0]
    assert "does not name a base" in resolve_to_look("b").notes[0]
    assert resolve_to_look("org/model") == resolve_target("org/model")


def test_to_look_at_them_an_adapter_may_stand_beside_others(here: Path) -> None:
    make_adapter(here / "runs/a/adapter")
    make_adapter(here / "b")
    found = resolve_to_look("runs/a", ["two=b"])
    assert [(each.name, each.folder) for each in found.adapters] == [("a", Path("runs/a/adapter")), ("two", Path("b"))]
    assert found.base == "org/base"


def test_to_look_at_them_two_bases_are_refused_all_the_same(here: Path) -> None:
    make_adapter(here / "a")
    make_adapter(here / "b", base="org/other")
    with pytest.raises(AdapterError, match="names the base org/other"):
        resolve_to_look("a", ["b"])
