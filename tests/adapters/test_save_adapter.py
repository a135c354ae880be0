"""An adapter on disk: PEFT's own format out, and nothing wrong in unseen."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.metadata import adapter_in
from loraft.adapters.resolve_target import resolve_target
from loraft.adapters.save_adapter import generation_defaults, load_adapters, restore, save_adapter, save_full
from loraft.config.schema import GenerationSection, RunConfig
from loraft.errors import AdapterError, NonFiniteError
from loraft.models.load_model import LoadedModel
from tests.adapters.setting import FACTS, Rendering, disturb, logits, run_config, tiny_loaded
from tests.models.test_foreign_code import name_code
from tests.tiny import CHATML

SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("llama", {}),
    "last layer": ("llama", {"layers": "last:1", "target_modules": "attention"}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "patterns": ("llama", {"rank_pattern": {r"layers\.1\..*": 2, "q_proj": 8}, "alpha_pattern": {"v_proj": 1.5}}),
    "whole": ("llama", {"modules_to_save": ["lm_head", "norm"], "target_modules": "attention"}),
    "conv1d": ("gpt2", {}),
    "conv1d dora": ("gpt2", {"use_dora": True, "target_modules": ["attn.c_proj", "mlp.c_fc"]}),
    "fused": ("phi3", {"layers": [0, 2]}),
}


def trained(
    folder: Path, model_type: str = "llama", *, base: Path | None = None, **lora: object
) -> tuple[AdaptedModel, RunConfig]:
    """An adapter with an effect, on a base in `folder`/base."""
    config = run_config(model=str(base or folder / "base"), **lora)
    sizes = {} if model_type == "gpt2" else {"tie_word_embeddings": False}
    adapted = attach(tiny_loaded(folder / "base", model_type, **sizes), config)
    disturb(adapted.trainable)
    return adapted, config


def saved(folder: Path, model_type: str = "llama", **lora: object) -> tuple[AdaptedModel, Path]:
    adapted, config = trained(folder, model_type, **lora)
    save_adapter(adapted, folder / "adapter", config=config, renderer=Rendering(), facts=FACTS)
    return adapted, folder / "adapter"


@pytest.mark.slow_after(2)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own use of it
@pytest.mark.parametrize("shape", SHAPES)
def test_the_three_lines_of_peft_give_the_same_logits(tmp_path: Path, shape: str) -> None:
    """C27: what was trained is what is loaded, Conv1D, rsLoRA, DoRA and patterns included."""
    model_type, lora = SHAPES[shape]
    adapted, folder = saved(tmp_path, model_type, **lora)
    base_model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = logits(base_model)
    model = PeftModel.from_pretrained(base_model, folder)
    # DoRA's norms are sums of other terms than peft's: float32, through three layers to logits of about 4.
    atol = 2e-5 if lora.get("use_dora") else 0
    torch.testing.assert_close(logits(adapted.model), logits(model), atol=atol, rtol=0)
    assert not torch.allclose(logits(model), plain, atol=1e-2), "the adapter has an effect"


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("shape", SHAPES)
def test_load_adapter_gives_the_same_logits(tmp_path: Path, shape: str) -> None:
    model_type, lora = SHAPES[shape]
    adapted, folder = saved(tmp_path, model_type, **lora)
    again = load_adapters(tiny_loaded(tmp_path / "base", model_type), {"default": folder})
    assert torch.equal(logits(again.model), logits(adapted.model))
    assert again.trainable == {}
    assert not any(weight.requires_grad for weight in again.model.parameters())
    assert again.notes == ()


@pytest.mark.parametrize("shape", ["lora", "whole", "dora"])
def test_restore_puts_back_what_was_saved(tmp_path: Path, shape: str) -> None:
    adapted, folder = saved(tmp_path, **SHAPES[shape][1])
    before = {name: weight.clone() for name, weight in adapted.trainable.items()}
    disturb(adapted.trainable, seed=9)
    restore(adapted, folder)
    assert all(torch.equal(before[name], weight) for name, weight in adapted.trainable.items())


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    adapted, folder = saved(tmp_path)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_adapter(adapted, folder, config=trained(tmp_path)[1], renderer=Rendering(), facts=FACTS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_files_of_an_adapter(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
        "loraft.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base"), "the base as the config wrote it"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_patterns_are_saved_in_their_order(tmp_path: Path) -> None:
    """Of two patterns that match the first wins, and peft would sort them."""
    _, folder = saved(tmp_path, rank_pattern={r"layers\.0\..*": 2, "k_proj": 3}, target_modules=["k_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert list(config["rank_pattern"]) == [r"layers\.0\..*", "k_proj"]


def test_nothing_but_adapter_config_tells_where_the_base_lay(tmp_path: Path) -> None:
    """C44: cards and manifests show no absolute path."""
    _, folder = saved(tmp_path)
    telling = [path.name for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert telling == ["adapter_config.json"]


def test_c7_the_template_that_was_trained_with_is_saved(tmp_path: Path) -> None:
    adapted, config = trained(tmp_path)
    save_adapter(adapted, tmp_path / "adapter", config=config, renderer=Rendering("{{ 'another' }}"), facts=FACTS)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template == "{{ 'another' }}"
    assert resolve_target(str(tmp_path / "adapter")).metadata.system_prompt == "Answer in JSON."
    assert adapted.loaded.tokenizer.chat_template == CHATML, "the tokenizer in use is left alone"


def test_c8_every_stop_id_is_saved(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 1]


def test_c8_the_stop_ids_of_the_base_stay(tmp_path: Path) -> None:
    """As those of gpt-oss and Llama 3.1, whose calls of tools end otherwise than their answers do."""
    adapted, config = trained(tmp_path)
    adapted.model.generation_config.eos_token_id = [2, 7]
    save_adapter(adapted, tmp_path / "adapter", config=config, renderer=Rendering(), facts=FACTS)
    assert GenerationConfig.from_pretrained(tmp_path / "adapter").eos_token_id == [2, 1, 7]
    other = config.model_copy(update={"model": config.model.model_copy(update={"tokenizer": "another"})})
    save_adapter(adapted, tmp_path / "other", config=other, renderer=Rendering(), facts=FACTS)
    assert GenerationConfig.from_pretrained(tmp_path / "other").eos_token_id == [2, 1]  # 7 is another token there


SAMPLED: dict[str, object] = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize(
    ("base", "temperature", "expected"),
    [
        ({}, 0.0, {"do_sample": False}),
        (SAMPLED, 0.0, {"do_sample": False}),
        ({}, 0.7, {"do_sample": True, "temperature": 0.7}),
        (SAMPLED, None, SAMPLED),
    ],
)
def test_generation_defaults(base: dict[str, object], temperature: float | None, expected: dict[str, object]) -> None:
    section = GenerationSection(max_new_tokens=40, temperature=temperature)
    values = generation_defaults(GenerationConfig(**base), section, (2, 7), 0)
    always = {"eos_token_id": [2, 7], "pad_token_id": 0, "max_new_tokens": 40}
    assert values == always | expected
    GenerationConfig(**values).validate(strict=True)


def test_the_card_says_what_was_measured_and_no_more(tmp_path: Path) -> None:
    adapted, config = trained(tmp_path)
    for facts, said in (
        (FACTS, "held-out loss: 1.5000"),
        (replace(FACTS, eval_loss=None), "held-out loss: not measured"),
    ):
        save_adapter(adapted, tmp_path / "adapter", config=config, renderer=Rendering(), facts=facts)
        card = (tmp_path / "adapter/README.md").read_text()
        assert said in card
        assert card.startswith('---\nbase_model: "base"\nlibrary_name: peft\n')
        assert "PeftModel.from_pretrained(base_model," in card


def test_c34_files_follow_the_umask(tmp_path: Path) -> None:
    adapted, config = trained(tmp_path)
    for umask in (0o022, 0o002, 0o077):
        before = os.umask(umask)
        try:
            save_adapter(adapted, tmp_path / "adapter", config=config, renderer=Rendering(), facts=FACTS)
        finally:
            os.umask(before)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
        assert modes == {0o666 & ~umask}


def test_c17_a_tensor_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    adapted, folder = saved(tmp_path)
    before = (folder / "adapter_model.safetensors").read_bytes()
    name, weight = next(iter(adapted.trainable.items()))
    weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 tensor holds NaN.*not saved"):
        save_adapter(adapted, folder, config=run_config(), renderer=Rendering(), facts=FACTS)
    assert (folder / "adapter_model.safetensors").read_bytes() == before, name


def test_a_model_trained_whole_is_saved_and_put_back(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path / "base", tie_word_embeddings=True)
    config = run_config("full", model="org/base")
    adapted = attach(loaded, config)
    disturb(adapted.trainable)
    (tmp_path / "base/preprocessor_config.json").write_text("{}")
    save_full(adapted, tmp_path / "model", config=config, renderer=Rendering(), facts=FACTS)
    assert (tmp_path / "model/preprocessor_config.json").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert again.dtype == torch.float32
    assert torch.equal(logits(again), logits(adapted.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == CHATML
    telling = [path.name for path in (tmp_path / "model").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert telling == []
    before = logits(adapted.model)
    disturb(adapted.trainable, seed=5)
    restore(adapted, tmp_path / "model")
    assert torch.equal(logits(adapted.model), before)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_code_that_a_base_names_is_not_saved(tmp_path: Path, method: str) -> None:
    tiny_loaded(tmp_path / "base")
    name_code(tmp_path / "base/config.json")
    name_code(tmp_path / "base/tokenizer_config.json")
    config = run_config(method, model="org/base")
    adapted = attach(tiny_loaded(tmp_path / "base"), config)
    save = save_full if method == "full" else save_adapter
    save(adapted, tmp_path / "out", config=config, renderer=Rendering(), facts=FACTS)
    naming = [path.name for path in (tmp_path / "out").iterdir() if b'"auto_map"' in path.read_bytes()]
    assert naming == []


def edit_json(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors, sorted(tensors)[0])
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def halved(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing key": (edit_tensors(lambda tensors, key: tensors.pop(key)), "is missing"),
    "key left over": (edit_tensors(lambda tensors, _: tensors.update(extra=torch.ones(1))), "no place for .* extra"),
    "nan": (edit_tensors(lambda tensors, key: tensors[key].fill_(float("nan"))), "NaN or infinity"),
    "infinite": (edit_tensors(lambda tensors, key: tensors[key].fill_(float("inf"))), "NaN or infinity"),
    "shape": (
        edit_tensors(lambda tensors, key: tensors.update({key.replace("lora_A", "lora_B"): torch.ones(3, 4)})),
        "the base needs",
    ),
    "rank": (edit_json("adapter_config.json", r=8), "it was trained with 4, and now says 8"),
    "alpha": (edit_json("adapter_config.json", lora_alpha=64), "it was trained with 8, and now says 64"),
    "endless alpha": (edit_json("adapter_config.json", lora_alpha=float("inf")), "lora_alpha.* inf is not taken here"),
    "a contradiction": (edit_json("adapter_config.json", layers_pattern="layers"), "peft does not take it"),
    "rslora": (edit_json("adapter_config.json", use_rslora=True), "now says True"),
    "targets": (edit_json("adapter_config.json", target_modules=["q_proj"]), "no place for the tensor"),
    "no targets": (edit_json("adapter_config.json", target_modules=["zzz"]), "does not fit the base"),
    "pissa": (edit_json("adapter_config.json", init_lora_weights="pissa"), "changes its base"),
    "another kind": (edit_json("adapter_config.json", peft_type="IA3"), "'IA3' is not taken here"),
    "wrong type": (edit_json("adapter_config.json", r="8"), "r: '8' is not taken here|trained with 4"),
    "unknown feature": (edit_json("adapter_config.json", layer_replication=[[0, 2]]), "layer_replication"),
    "pattern": (edit_json("adapter_config.json", rank_pattern={"(": 1}), "regular expression"),
    "truncated": (halved, "cannot be read"),
    "pickled": (pickled, "pickled weights can run code"),
    "no json": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
    "no object": (lambda folder: (folder / "loraft.json").write_text("[]"), "no JSON object"),
    "empty": (lambda folder: (folder / "adapter_config.json").unlink(), r"there is no adapter_config\.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    """An adapter to be copied before it is harmed, and its base, which stays as it is."""
    folder = tmp_path_factory.mktemp("whole")
    _, adapter = saved(folder)
    return tiny_loaded(folder / "base"), adapter


@pytest.mark.parametrize("damage", DAMAGES)
def test_c23_what_is_wrong_with_an_adapter_is_said(
    tmp_path: Path, whole: tuple[LoadedModel, Path], damage: str
) -> None:
    """C41 too: of pickled weights nothing is read. And C48: an adapter that changes its base is not taken."""
    loaded, adapter = whole
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    harm, message = DAMAGES[damage]
    harm(folder)
    before = logits(loaded.model)
    with pytest.raises(AdapterError, match=message):
        load_adapters(loaded, {"default": folder})
    assert torch.equal(logits(loaded.model), before), "the base is left as it was"
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())


def test_a_record_that_says_odd_things_of_the_method_is_no_traceback(
    tmp_path: Path, whole: tuple[LoadedModel, Path]
) -> None:
    folder = shutil.copytree(whole[1], tmp_path / "adapter")
    edit_json("loraft.json", method=[[]])(folder)
    assert load_adapters(tiny_loaded(whole[1].parent / "base"), {"default": folder}).method == "lora"
    edit_json("loraft.json", quantization="nf4")(folder)
    with pytest.raises(AdapterError):
        adapter_in(folder)


def test_c23_a_rank_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    (folder / "loraft.json").unlink()
    edit_json("adapter_config.json", r=8)(folder)
    with pytest.raises(AdapterError, match=r"rank 8 for .* the tensors have rank 4"):
        load_adapters(tiny_loaded(tmp_path / "base"), {"default": folder})


def test_c23_tensors_of_rank_0(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    edit_tensors(lambda tensors, key: tensors.update({key: tensors[key][:0]}))(folder)
    with pytest.raises(AdapterError, match=r"rank 4 for .* the tensors have rank 0"):
        load_adapters(tiny_loaded(tmp_path / "base"), {"default": folder})


def test_c23_another_base_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(AdapterError, match="trained on other base weights"):
        load_adapters(tiny_loaded(tmp_path / "base", fingerprint="0" * 64), {"default": folder})


def test_c23_an_adapter_of_another_tool_is_loaded_and_told(tmp_path: Path) -> None:
    adapted, folder = saved(tmp_path)
    (folder / "loraft.json").unlink()
    again = load_adapters(tiny_loaded(tmp_path / "base"), {"default": folder})
    assert torch.equal(logits(again.model), logits(adapted.model))
    assert "the base was not compared" in again.notes[0]


@pytest.mark.filterwarnings("ignore")  # peft's, of the very thing that is shown here
def test_c22_a_head_of_its_own_on_a_tied_base_is_loaded_whole_and_told(tmp_path: Path) -> None:
    loaded = tiny_loaded(tmp_path / "base", tie_word_embeddings=True)
    foreign = get_peft_model(loaded.model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    disturb({name: weight for name, weight in foreign.named_parameters() if weight.requires_grad})
    foreign.save_pretrained(tmp_path / "adapter")
    fresh = tiny_loaded(tmp_path / "base")
    again = load_adapters(fresh, {"default": tmp_path / "adapter"})
    assert torch.equal(logits(again.model), logits(foreign))
    assert "lm_head of its own" in again.notes[1]
    assert torch.equal(fresh.model.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "x" * 65, "a.b", "ä"])
def test_c28_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        load_adapters(tiny_loaded(tmp_path / "base"), {name: tmp_path})


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", ["a", "lora", "default", "mine-2_b"])
def test_c28_any_other_name_is_taken(tmp_path: Path, name: str) -> None:
    adapted, folder = saved(tmp_path)
    again = load_adapters(tiny_loaded(tmp_path / "base"), {name: folder})
    assert torch.equal(logits(again.model), logits(adapted.model))
