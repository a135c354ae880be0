"""A .gguf file becomes a folder that plain transformers loads, and computes the same."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraft.config.sections import ModelSection
from loraft.errors import ModelError, ResourceError
from loraft.io.paths import CONVERSION
from loraft.models.load_model import load_tokenizer
from loraft.models.sources import resolve
from tests.models.gguf_files import write_tiny_gguf
from tests.tiny import tiny_tokenizer


@pytest.mark.usefixtures("cache")
def test_the_converted_folder_loads_with_plain_transformers_and_computes_the_same(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    original = write_tiny_gguf(file)
    folder = resolve(str(file))
    assert resolve(str(file)) == folder
    ids = torch.randint(3, 300, (1, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        converted = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        torch.testing.assert_close(converted, original(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the order is late,  12 345 é 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 512)


@pytest.mark.usefixtures("cache")
def test_the_folder_names_no_machine_and_its_files_follow_the_umask(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = resolve(str(tmp_path / "tiny.gguf"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1
    written = "".join(path.read_text() for path in folder.glob("*.json"))
    assert str(tmp_path) not in written
    for key in ("_name_or_path", "is_local", "local_files_only", "TokenizersBackend"):
        assert key not in written


@pytest.mark.usefixtures("cache")
def test_the_rule_by_which_text_is_split_is_the_files_own(tmp_path: Path) -> None:
    """Where digits stand apart, both spaces before one are together; by GPT-2's rule the digit takes one of them."""
    pieces = {}
    for rule in ("smollm", "gpt-2"):
        write_tiny_gguf(tmp_path / f"{rule}.gguf", splits_by=rule)
        tokenizer = AutoTokenizer.from_pretrained(resolve(str(tmp_path / f"{rule}.gguf")))
        pieces[rule] = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == {"smollm": ["a", "ĠĠ", "1", "2"], "gpt-2": ["a", "Ġ", "Ġ12"]}


@pytest.mark.usefixtures("cache")
def test_no_token_is_added_to_those_of_the_file(tmp_path: Path) -> None:
    """Transformers adds GPT-2's end of text, for which such a model has no embedding."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = resolve(str(tmp_path / "tiny.gguf"))
    ids = AutoTokenizer.from_pretrained(folder).get_vocab().values()
    assert max(ids) < AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().num_embeddings


@pytest.mark.usefixtures("cache")
def test_a_tokenizer_with_an_unknown_rule_is_left_out_and_another_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file, splits_by="unheard-of")
    with pytest.raises(ModelError, match="there is no tokenizer") as caught:
        load_tokenizer(ModelSection(name_or_path=str(file)))
    assert "model.tokenizer" in str(caught.value)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    named = ModelSection(name_or_path=str(file), tokenizer=str(tmp_path / "tokenizer"))
    assert len(load_tokenizer(named)) == 300


def test_a_damaged_file_is_an_error_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    whole = file.read_bytes()
    for damaged in (b"", b"no gguf at all", whole[: len(whole) // 2], whole[:100]):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"tiny\.gguf"):
            resolve(str(file))
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock" and path.name != CONVERSION]


def test_a_disk_that_is_too_small_is_foreseen(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ResourceError, match="and 1,000 are free"):
        resolve(str(tmp_path / "tiny.gguf"))
