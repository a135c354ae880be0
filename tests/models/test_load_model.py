"""The door: what it lets in is whole, frozen and where it should be; what it refuses, it refuses in a sentence."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import logging

from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import ModelError, OutOfMemoryError
from loraft.models import load_model as loading
from loraft.models.auto_model import meta_model
from loraft.models.device import DeviceConfig
from loraft.models.load_model import load_config, load_model, load_tokenizer
from loraft.models.modules import linear_modules, parameter_count
from loraft.models.registry import FAMILIES
from tests.tiny import TINY_MODEL_TYPES, save_tiny, tiny_model, tiny_tokenizer, with_head_apart


def placed(dtype: torch.dtype = torch.float32) -> DeviceConfig:
    return DeviceConfig("cpu", dtype, "test", 2**30, 2**30, ("on a test's CPU",))


def section(folder: Path, **options: Any) -> ModelSection:
    return ModelSection(name_or_path=str(folder), **options)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@contextmanager
def talkative() -> Iterator[None]:
    """Have transformers tell all that it has to tell, and goes on to do so afterwards."""
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        yield
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_each_family_comes_through_the_door_as_it_was_saved(
    tmp_path: Path, model_type: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path, model_type)
    capfd.readouterr()
    with talkative():
        loaded = load_model(section(folder), placed())
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert loaded.family is FAMILIES[model_type]
    assert loaded.name == str(folder)
    assert loaded.fingerprint.startswith("sha256:")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, tiny_model(model_type)(input_ids=ids).logits)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "bloom"])
def test_the_meta_device_tells_sizes_without_memory(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny(tmp_path, model_type)
    skeleton = meta_model(load_config(section(folder)))
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    model = tiny_model(model_type)
    assert linear_modules(skeleton) == linear_modules(model)
    assert parameter_count(skeleton) == parameter_count(model) == sum(p.numel() for p in model.parameters())


def test_sizes_of_linear_modules_are_inputs_then_outputs(tmp_path: Path) -> None:
    sizes = linear_modules(tiny_model("gpt2"))
    assert sizes["transformer.h.0.attn.c_attn"] == (32, 96)
    assert sizes["transformer.h.2.mlp.c_proj"] == (48, 32)
    assert sizes["lm_head"] == (32, 320)
    folder = save_tiny(tmp_path, hidden_size=64, intermediate_size=128)
    whole = load_model(section(folder), placed()).model
    quantized = load_model(section(folder), placed(), quantization=QuantizationSection()).model
    assert linear_modules(quantized) == linear_modules(whole)
    assert linear_modules(quantized)["model.layers.0.self_attn.k_proj"] == (64, 32)
    assert parameter_count(quantized) == parameter_count(whole)


def test_c14_frozen_weights_are_in_the_dtype_of_the_placement(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(section(folder), placed(dtype)).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model = load_model(section(folder), placed(torch.bfloat16), quantization=QuantizationSection()).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.uint8}


def test_c24_missing_tensors_are_an_error_not_random_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(section(folder), placed())


def test_a_file_cut_short_is_refused_before_it_is_loaded(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ModelError, match="cut short"):
        load_model(section(folder), placed())


def test_c41_a_planted_pickle_never_runs(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "exploded").touch, ())

    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    load_model(section(folder), placed())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled"):
        load_model(section(folder), placed())
    assert not (tmp_path / "exploded").exists()


def test_c42_code_that_comes_with_a_model_never_runs(folder: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass C: pass\n"
    (folder / "evil.py").write_text(code)
    edit_config(folder, lambda c: c.update(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}))
    assert [note for note in load_model(section(folder), placed()).notes if "auto_map in config.json" in note]
    edit_config(folder, lambda c: c.update(model_type="evil"))
    with pytest.raises(ModelError, match="not one that transformers knows"):
        load_model(section(folder), placed())
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"num_hidden_layers": 5}, r"tensors are missing: model\.layers\.3"),
        ({"intermediate_size": 64}, r"config\.json makes it \[64, 32\]"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, edit: dict[str, Any], said: str) -> None:
    edit_config(folder, lambda config: config.update(edit))
    with pytest.raises(ModelError, match=said):
        load_model(section(folder), placed())


def test_a_quantization_that_says_nothing_is_none(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(quantization_config={}))
    loaded = load_model(section(folder), placed())
    assert loaded.stored is None
    assert not hasattr(loaded.model.config, "quantization_config")


def test_c40_float16_is_refused_where_activations_overflow_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not stable in float16"):
        load_model(section(save_tiny(tmp_path, "gemma2")), DeviceConfig("cuda", torch.float16, "test", 1, 1, ()))


def test_attention_is_as_asked_or_refused(folder: Path, tmp_path: Path) -> None:
    assert load_model(section(folder), placed()).model.config._attn_implementation == "sdpa"
    eager = section(folder, attn_implementation="eager")
    assert load_model(eager, placed()).model.config._attn_implementation == "eager"
    gemma2 = save_tiny(tmp_path / "gemma2", "gemma2")
    assert load_model(section(gemma2), placed()).model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="scaled_dot_product_attention"):
        meta_model(load_config(section(gemma2, attn_implementation="sdpa")))
    with pytest.raises(ModelError, match="scaled_dot_product_attention"):
        load_model(section(gemma2, attn_implementation="sdpa"), placed())


def test_c21_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, vocab_size=300)
    assert len(load_tokenizer(section(folder))) == 300
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one-more>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="tokens up to id 300, and the model has 300 embeddings"):
        load_tokenizer(section(folder))


def test_a_missing_padding_token_is_stood_in_for_and_said(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert load_model(section(folder), placed()).notes == ("on a test's CPU",)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_model(section(folder), placed())
    assert loaded.tokenizer.pad_token == "<|im_end|>"
    assert "no padding token: <|im_end|> stands in" in loaded.notes[-1]


def test_another_tokenizer_can_be_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="there is no tokenizer"):
        load_tokenizer(section(folder))
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    assert len(load_tokenizer(section(folder, tokenizer=str(tmp_path / "other")))) == 300


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": 1')
    with pytest.raises(ModelError, match="cannot read it"):
        load_tokenizer(section(folder))


def test_a_vocabulary_of_sentencepiece_is_a_tokenizer_whatever_it_is_called(tmp_path: Path) -> None:
    """DeBERTa v3 has no other file than spm.model, and mBART no other than sentencepiece.bpe.model."""
    folder = save_tiny(tmp_path / "model", "deberta-v2")
    for file in folder.glob("*token*"):
        file.unlink()
    (tmp_path / "text").write_text("the order is late\nthe text is in the order\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "spm"), vocab_size=18, minloglevel=2
    )
    assert load_tokenizer(section(folder), "classifier").tokenize("the order is late")


def test_a_head_that_a_config_ties_and_the_files_have_apart_stays_apart(tmp_path: Path) -> None:
    """It is so where embeddings grow, which ties what the config says is tied, and where all is trained."""
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=True)
    head = with_head_apart(folder)
    loaded = load_model(section(folder, add_tokens=[f"<new {number}>" for number in range(30)]), placed())
    weight = loaded.model.get_parameter("lm_head.weight")
    assert len(weight) == 330
    assert torch.equal(weight[:320], head)
    assert "ties lm_head.weight and model.embed_tokens.weight" in loaded.notes[-1]
    assert "lm_head.weight" in dict(meta_model(loaded.model.config).named_parameters())


def test_memory_that_runs_out_while_weights_are_quantized_is_what_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would go on with the next tensor, and tell of a report that nobody sees."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 MiB.")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", full)
    with pytest.raises(OutOfMemoryError):
        load_model(section(folder), placed(torch.bfloat16), quantization=QuantizationSection())


@pytest.mark.parametrize("streamed", [None, "layers"])
def test_weights_go_to_the_gpu_of_this_process_by_its_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch, streamed: Any
) -> None:
    """Transformers reads them in threads, for which `cuda` is the first GPU whatever this process has chosen."""

    class Asked(Exception):
        pass

    def ask(_: object, __: object, options: dict[str, Any], ___: object) -> None:
        raise Asked(options["device_map"][""], getattr(options["quantization_config"], "through", None))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(loading, "from_pretrained", ask)
    placement = replace(placed(torch.bfloat16), device="cuda")
    with pytest.raises(Asked) as asked:
        load_model(section(folder), placement, quantization=QuantizationSection(), streamed=streamed)
    assert asked.value.args == (("cpu", "cuda:1") if streamed else ("cuda:1", None))
