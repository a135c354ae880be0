"""Anatomy and the table of layers, from a config alone or from a folder with weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from loraft.config.config_file import load_lora
from loraft.config.sections import LoraSection, ModelSection
from loraft.errors import AdapterError, ModelError
from loraft.inspection.layers import ModelTable, model_table
from loraft.inspection.layers_report import inspect_layers
from loraft.models.registry import FAMILIES
from loraft.planning.run_plan import plan_run
from tests.merging.merging import own_adapter, peft_adapter, save_base
from tests.tiny import SIZES, TELLING, VOCABULARY, mostly_slow, save_tiny, tiny_model, with_head_apart
from tests.training.building import tiny_config

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA_2_70B = LLAMA_2_7B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}

UNLIKE = ("llama", "gpt2", "bloom", "opt", "phi3", "gemma2", "olmo", "mixtral", "bert", "deberta-v2", "t5", "bart")
"""Families whose parts are laid out or called differently."""


def config_alone(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def table_of(folder: Path, lora: str | None = None) -> ModelTable:
    return model_table(ModelSection(name_or_path=str(folder)), load_lora(lora) if lora is not None else None)


def saved(folder: Path, model_type: str, **overrides: Any) -> Path:
    """A tiny model on disk: weights and config."""
    tiny_model(model_type, **overrides).save_pretrained(folder)
    return folder


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("model_type", mostly_slow(FAMILIES, *TELLING))
def test_parameters_are_those_of_the_model(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    table = table_of(tmp_path)
    anatomy = table.anatomy
    assert anatomy.parameters == sum(weight.numel() for weight in model.parameters())
    assert anatomy.parameters == sum(anatomy.parameters_by_part.values())
    assert anatomy.bytes_by_dtype == {"float32": 4 * anatomy.parameters}
    assert all(dtypes == {"float32": anatomy.parameters_by_part[part]} for part, dtypes in anatomy.dtypes.items())
    rows = {row.path: row for row in (*table.outside, *(row for layer in table.layers for row in layer.modules))}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    assert rows.keys() == linear.keys()
    for path, module in linear.items():
        assert rows[path].shape == tuple(module.weight.shape)
        assert rows[path].parameters == sum(weight.numel() for weight in module.parameters())


WITH_POSITIONS = (
    "gpt2", "gpt_bigcode", "opt", "bart", "mbart", "marian", "t5", "mt5", "bert", "roberta", "xlm-roberta",
    "distilbert",
)  # fmt: skip
"""Those with a table of positions among their parameters."""


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("model_type", mostly_slow(FAMILIES, *UNLIKE))
def test_parts_are_named_for_what_they_are(tmp_path: Path, model_type: str) -> None:
    parts = table_of(saved(tmp_path, model_type)).anatomy.parameters_by_part
    assert {"embeddings", "attention", "feed_forward"} <= parts.keys()
    assert ("norms" in parts) == (model_type != "olmo"), "OLMo's norms have no parameters"
    assert ("positions" in parts) == (model_type in WITH_POSITIONS)
    assert parts["embeddings"] >= VOCABULARY * SIZES["hidden_size"], "a head that is tied counts here"


def test_llama_2_7b_by_its_config_alone(tmp_path: Path) -> None:
    """FACTS: 65,536 against 16,777,216 for a matrix; q and v in 32 layers are 4,194,304."""
    folder = config_alone(tmp_path, LLAMA_2_7B)
    table = table_of(folder, "r=8,target_modules=[q_proj,v_proj]")
    assert table.anatomy.parameters == 6_738_415_616
    q = table.layers[0].modules[0]
    assert (q.name, q.shape, q.parameters, q.dtype, q.bytes) == (
        "self_attn.q_proj", (4096, 4096), 16_777_216, "float16", 33_554_432
    )  # fmt: skip
    assert (q.lora_target, q.lora_parameters) == (True, 65_536)
    assert table.lora is not None
    assert (table.lora.parameters, table.lora.modules) == (4_194_304, 64)
    assert table.lora.trained_share == pytest.approx(4_194_304 / (6_738_415_616 + 4_194_304))
    assert table.anatomy.feed_forward.size == 11008
    assert table.anatomy.kv_cache_bytes_per_token == 32 * 2 * 4096 * 2
    assert table.anatomy.parameters_by_part["feed_forward"] / table.anatomy.parameters_by_part[
        "attention"
    ] == pytest.approx(2.0156, abs=1e-3)


def test_a_70b_config_is_instant(tmp_path: Path) -> None:
    folder = config_alone(tmp_path, LLAMA_2_70B)
    begin = time.perf_counter()
    anatomy = table_of(folder).anatomy
    assert time.perf_counter() - begin < 5, "measured 0.5 s on an idle core; nothing may grow with the weights"
    assert anatomy.parameters == 68_976_648_192
    assert (anatomy.attention, anatomy.num_attention_heads, anatomy.num_key_value_heads) == ("GQA", 64, 8)


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(
    ("model_type", "overrides", "kind", "shared"),
    [
        ("llama", {"num_key_value_heads": 4}, "MHA", 4),
        ("llama", {"num_key_value_heads": 2}, "GQA", 2),
        ("llama", {"num_key_value_heads": 1}, "MQA", 1),
        ("phi3", {"num_key_value_heads": 2}, "GQA", 2),
        ("gpt_bigcode", {}, "MQA", 1),
        ("gpt2", {}, "MHA", 4),
        ("gpt_neox", {}, "MHA", 4),
        ("bloom", {}, "MHA", 4),
        ("bert", {}, "MHA", 4),
        ("t5", {}, "MHA", 4),
        ("marian", {}, "MHA", 4),
        ("gemma2", {"head_dim": 16}, "GQA", 2),
    ],
)
def test_heads_by_the_shapes_of_the_projections(
    tmp_path: Path, model_type: str, overrides: dict[str, Any], kind: str, shared: int
) -> None:
    anatomy = table_of(saved(tmp_path, model_type, **overrides)).anatomy
    assert (anatomy.attention, anatomy.num_attention_heads, anatomy.num_key_value_heads) == (kind, 4, shared)
    assert anatomy.head_size == overrides.get("head_dim", 8)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("model_type", "paths", "bare"),
    [
        ("llama", {"decoder": "model.layers"}, {"decoder": "layers"}),
        ("gpt2", {"decoder": "transformer.h"}, {"decoder": "h"}),
        ("gpt_neox", {"decoder": "gpt_neox.layers"}, {"decoder": "layers"}),
        ("opt", {"decoder": "model.decoder.layers"}, {"decoder": "decoder.layers"}),
        ("bert", {"encoder": "bert.encoder.layer"}, {"encoder": "encoder.layer"}),
        ("t5", {"encoder": "encoder.block", "decoder": "decoder.block"}, None),
        ("bart", {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
         {"encoder": "encoder.layers", "decoder": "decoder.layers"}),
    ],
)  # fmt: skip
def test_paths_of_the_stacks_are_python(
    tmp_path: Path, model_type: str, paths: dict[str, str], bare: dict[str, str] | None
) -> None:
    folder = saved(tmp_path, model_type)
    stacks = table_of(folder).anatomy.stacks
    assert {stack.name: stack.path for stack in stacks} == paths
    assert {stack.name: stack.bare_path for stack in stacks} == (bare or paths)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    for stack in stacks:
        assert len(model.get_submodule(stack.bare_path)) == stack.layers


@pytest.mark.slow_after(5)
@pytest.mark.parametrize(
    ("model_type", "kind", "place", "final"),
    [
        ("llama", "RMSNorm", "before each sub-layer (pre-norm)", True),
        ("gpt2", "LayerNorm", "before each sub-layer (pre-norm)", True),
        ("gpt_neox", "LayerNorm", "side by side (pre-norm)", True),
        ("gemma2", "RMSNorm", "before each sub-layer and behind it", True),
        ("olmo2", "RMSNorm", "behind each sub-layer, within the branch", True),
        ("bert", "LayerNorm", "post-norm", False),
        ("distilbert", "LayerNorm", "post-norm", False),
        ("bart", "LayerNorm", "post-norm", False),
        ("t5", "RMSNorm", "before each sub-layer (pre-norm)", True),
        ("mixtral", "RMSNorm", "before each sub-layer (pre-norm)", True),
    ],
)
def test_norms_by_what_they_compute_and_read(
    tmp_path: Path, model_type: str, kind: str, place: str, final: bool
) -> None:
    norms = table_of(saved(tmp_path, model_type)).anatomy.norms
    assert norms is not None
    assert (norms.kind, norms.final) == (kind, final)
    assert place in norms.place


def test_an_opt_with_its_norms_behind_is_post_norm(tmp_path: Path) -> None:
    norms = table_of(saved(tmp_path, "opt", do_layer_norm_before=False)).anatomy.norms
    assert norms is not None
    assert "post-norm" in norms.place


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("openai-gpt", "OpenAIGPTModel", "LayerNorm"),
        ("albert", "AlbertModel", "LayerNorm"),
        ("mobilebert", "MobileBertModel", "NoNorm"),
    ],
)
def test_norms_of_unusual_layers(tmp_path: Path, model_type: str, architecture: str, kind: str) -> None:
    """Layers that give a list, that run again and again, or whose outputs hold what their norms read."""
    config = AutoConfig.for_model(model_type).to_dict() | {"architectures": [architecture]}
    norms = table_of(config_alone(tmp_path, config)).anatomy.norms
    assert norms is not None
    assert (norms.kind, norms.final, "post-norm" in norms.place) == (kind, False, True)


@pytest.mark.parametrize(("model_type", "normed"), [("qwen3", True), ("gemma3_text", True), ("qwen2", False)])
def test_queries_and_keys_that_are_normed(tmp_path: Path, model_type: str, normed: bool) -> None:
    norms = table_of(saved(tmp_path, model_type)).anatomy.norms
    assert norms is not None
    assert norms.queries_and_keys is normed


@pytest.mark.parametrize(
    ("model_type", "size", "gated"), [("llama", 48, True), ("phi3", 48, True), ("gpt2", 48, False), ("bert", 48, False)]
)
def test_the_feed_forward_part(tmp_path: Path, model_type: str, size: int, gated: bool) -> None:
    part = table_of(saved(tmp_path, model_type)).anatomy.feed_forward
    assert (part.size, part.gated) == (size, gated)
    assert part.activation


def test_tied_and_untied_heads(tmp_path: Path) -> None:
    assert table_of(saved(tmp_path / "a", "llama", tie_word_embeddings=True)).anatomy.tied_embeddings is True
    untied = table_of(saved(tmp_path / "b", "llama", tie_word_embeddings=False)).anatomy
    assert untied.tied_embeddings is False
    assert untied.parameters_by_part["head"] == untied.parameters_by_part["embeddings"]


def test_c14_the_dtype_map_is_what_the_files_hold(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    mixed = {name: t if "norm" in name else t.to(torch.bfloat16) for name, t in tensors.items()}
    save_file(mixed, file, metadata={"format": "pt"})
    table = table_of(tmp_path)
    assert table.anatomy.dtypes["norms"].keys() == {"float32"}
    assert table.anatomy.dtypes["attention"].keys() == {"bfloat16"}
    assert table.layers[0].modules[0].dtype == "bfloat16"
    norms = table.anatomy.parameters_by_part["norms"]
    assert table.anatomy.bytes_by_dtype == {"bfloat16": 2 * (table.anatomy.parameters - norms), "float32": 4 * norms}


def test_a_config_alone_is_stored_as_it_says(tmp_path: Path) -> None:
    config_alone(tmp_path, LLAMA_2_7B | {"num_hidden_layers": 1})
    table = table_of(tmp_path)
    assert table.anatomy.dtype_source == "config.json"
    assert table.layers[0].modules[0].dtype == "float16"
    config_alone(tmp_path, {key: value for key, value in LLAMA_2_7B.items() if key != "torch_dtype"})
    assert "assumed" in table_of(tmp_path).anatomy.dtype_source


def test_a_bare_encoder_and_one_with_a_head(tmp_path: Path) -> None:
    AutoModel.from_config(tiny_model("bert").config).save_pretrained(tmp_path / "bare")
    bare = table_of(tmp_path / "bare", "r=4,target_modules=attention,layers=last:1")
    headed = table_of(saved(tmp_path / "headed", "bert"), "r=4,target_modules=attention,layers=last:1")
    assert bare.anatomy.stacks[0].path == "encoder.layer"
    assert headed.anatomy.stacks[0].path == "bert.encoder.layer"
    assert bare.lora is not None
    assert headed.lora is not None
    assert bare.lora.parameters == headed.lora.parameters == 4 * 4 * (32 + 32)
    assert (bare.anatomy.tied_embeddings, headed.anatomy.tied_embeddings) == (None, True)
    assert bare.anatomy.kv_cache_bytes_per_token is None


def test_layers_of_two_stacks_are_chosen_in_each(tmp_path: Path) -> None:
    table = table_of(saved(tmp_path, "t5"), "r=2,target_modules=mlp,layers=last:1")
    chosen = {(layer.stack, layer.index) for layer in table.layers for row in layer.modules if row.lora_target}
    assert chosen == {("encoder", 2), ("decoder", 1)}
    assert table.lora is not None
    assert table.lora.layers == {"encoder": (2,), "decoder": (1,)}


def test_dora_counts_its_magnitudes(tmp_path: Path) -> None:
    folder = saved(tmp_path, "gpt2")
    plain, dora = (table_of(folder, f"r=2,use_dora={word}") for word in ("false", "true"))
    assert plain.lora is not None
    assert dora.lora is not None
    for table in (plain, dora):
        assert table.lora is not None
        assert table.lora.parameters == sum(row.lora_parameters or 0 for la in table.layers for row in la.modules)
    assert dora.lora.parameters - plain.lora.parameters == 3 * (96 + 32 + 48 + 32)
    assert plain.layers[0].modules[0].shape == (32, 96), "GPT-2 stores [in, out]"


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["c_attn", "wte"]},
        {"trainable_token_indices": [3, 250]},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["ln_f"], "target_modules": ["c_attn"]},
    ],
    ids=lambda lora: next(iter(lora)),
)
def test_all_that_an_adapter_trains_is_counted(tmp_path: Path, lora: dict[str, Any]) -> None:
    adapted = peft_adapter(tmp_path / "adapter", save_base(tmp_path / "base", "gpt2"), "gpt2", **lora)
    counted = inspect_layers(str(tmp_path / "adapter")).as_dict()["lora"]
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert counted["parameters"] + counted["saved_parameters"] == trained


def test_biases_that_a_config_trains_are_counted(tmp_path: Path) -> None:
    adapted = own_adapter(tmp_path / "adapter", save_base(tmp_path / "base", "gpt2"), bias="all")
    counted = inspect_layers(str(tmp_path / "base"), lora=LoraSection(r=4, alpha=8, bias="all")).as_dict()["lora"]
    trained = sum(weight.numel() for weight in adapted.trainable.values())
    assert counted["parameters"] + counted["saved_parameters"] == trained


def test_a_mixture_is_looked_into_and_lora_goes_to_its_linear_modules(tmp_path: Path) -> None:
    folder = saved(tmp_path, "mixtral")
    table = table_of(folder)
    experts = table.anatomy.experts
    assert experts is not None
    assert (experts.count, experts.active, experts.parameters) == (4, 2, 3 * 4 * 3 * 32 * 48)
    assert table.anatomy.active_parameters == table.anatomy.parameters - experts.parameters // 2
    on_attention = table_of(folder, "r=2,experts=false").lora
    assert on_attention is not None
    assert on_attention.parameters == 3 * 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))
    with pytest.raises(AdapterError, match="all experts in one tensor"):
        table_of(folder, "r=2,target_modules=mlp,experts=false")
    whole, of_an_expert = table_of(folder, "r=2").lora, 2 * (32 + 96) + 2 * (48 + 32)
    assert whole is not None
    assert whole.parameters == on_attention.parameters + 3 * 4 * of_an_expert


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("model_type", "architecture", "path"),
    [
        ("gptj", "GPTJForCausalLM", "transformer.h"),
        ("falcon", "FalconForCausalLM", "transformer.h"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "model.layers"),
        ("roberta", "RobertaForMaskedLM", "roberta.encoder.layer"),
        ("mbart", "MBartForConditionalGeneration", "model.decoder.layers"),
    ],
)
def test_families_that_the_table_does_not_have_show_their_structure(
    tmp_path: Path, model_type: str, architecture: str, path: str
) -> None:
    config = AutoConfig.for_model(model_type).to_dict() | {"architectures": [architecture]}
    table = table_of(config_alone(tmp_path, config))
    assert table.anatomy.architecture == architecture
    assert table.anatomy.stacks[-1].path == path
    assert table.lora is not None


def test_what_has_no_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    config_alone(tmp_path, {"model_type": "resnet", "architectures": ["ResNetModel"]})
    with pytest.raises(ModelError, match="no list of layers"):
        table_of(tmp_path)


def test_what_cannot_be_taken_apart_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'clip' is not in loraft's table, and it cannot be looked into"):
        table_of(config_alone(tmp_path, {"model_type": "clip"}))


def test_a_head_that_the_files_have_apart_is_counted(tmp_path: Path) -> None:
    tied = table_of(save_tiny(tmp_path, tie_word_embeddings=True)).anatomy.parameters
    head = with_head_apart(tmp_path)
    assert table_of(tmp_path).anatomy.parameters - tied == head.numel()


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no layers at model\.layers"):
        table_of(config_alone(tmp_path, LLAMA_2_7B | {"num_hidden_layers": 0}))


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"model_type": "never-heard-of"}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError):
        table_of(tmp_path)


def test_weights_that_were_quantized_before_are_looked_at(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert table_of(config_alone(tmp_path, LLAMA_2_7B | quantized)).anatomy.parameters == 6_738_415_616


def test_the_document_keeps_the_contract(tmp_path: Path) -> None:
    document = inspect_layers(str(save_tiny(tmp_path / "llama"))).as_dict()
    for key, value in {
        "model_type": "llama",
        "num_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention": "GQA",
    }.items():
        assert document[key] == value
    assert document["position_encoding"]["kind"] == "rotary"
    assert "queries and keys" in document["position_encoding"]["applied"]
    assert document["parameters"] == sum(weight.numel() for weight in tiny_model("llama").parameters())
    assert [layer["index"] for layer in document["layers"]] == [0, 1, 2]
    for module in document["layers"][0]["modules"]:
        assert {"name", "shape", "parameters", "dtype", "bytes", "lora_parameters"} <= module.keys()
        assert module["lora_parameters"] == 16 * sum(module["shape"])
    json.dumps(document)


def test_the_document_of_two_stacks_tells_them_apart(tmp_path: Path) -> None:
    document = inspect_layers(str(saved(tmp_path, "bart"))).as_dict()
    assert (document["encoder_layers"], document["decoder_layers"]) == (3, 2)
    assert "num_layers" not in document
    assert [(layer["stack"], layer["index"]) for layer in document["layers"]] == [
        ("encoder", 0), ("encoder", 1), ("encoder", 2), ("decoder", 0), ("decoder", 1)
    ]  # fmt: skip


def test_a_table_that_is_empty_in_the_files_is_read(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.transformer.wpe.weight.data.zero_()
    model.save_pretrained(tmp_path)
    assert table_of(tmp_path).anatomy.position_encoding.kind == "none"


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cut short"):
        table_of(tmp_path)


def test_an_index_without_its_files_is_what_the_hub_gives_beside_a_config(tmp_path: Path) -> None:
    config_alone(tmp_path, LLAMA_2_7B)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert table_of(tmp_path).anatomy.dtype_source == "config.json"
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match="the file is missing"):
        table_of(tmp_path)


def test_the_api_looks_too(tmp_path: Path) -> None:
    from loraft.api import inspect_layers

    folder = str(config_alone(tmp_path, LLAMA_2_7B))
    assert (
        inspect_layers(folder, lora=load_lora("r=8")).as_dict()
        == inspect_layers(folder, lora=load_lora("r=8")).as_dict()
    )


@pytest.mark.parametrize("model_type", mostly_slow(["llama", "gpt2", "t5"], "llama"))
def test_what_qlora_keeps_is_what_the_plan_says(tmp_path: Path, model_type: str) -> None:
    task = "seq2seq_lm" if model_type == "t5" else "causal_lm"
    plan = plan_run(tiny_config(tmp_path, task=task, model_type=model_type, method="qlora", model__dtype="bfloat16"))
    found = model_table(ModelSection(name_or_path=plan.config.model.name_or_path), None).anatomy.qlora
    assert found is not None
    assert (found.parameters, found.bytes) == (plan.shape.quantized_parameters, plan.memory.weights)


def test_of_llama_2_7b_qlora_keeps_four_bits_a_parameter(tmp_path: Path) -> None:
    found = table_of(config_alone(tmp_path / "llama", LLAMA_2_7B)).anatomy.qlora
    assert found is not None
    assert found.parameters == 6_476_005_376
    assert found.bytes == pytest.approx(found.parameters * 4.127 / 8 + 2 * (6_738_415_616 - found.parameters), rel=1e-4)


def test_what_cannot_be_quantized_has_no_such_figure(tmp_path: Path) -> None:
    rwkv = {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    assert table_of(config_alone(tmp_path / "rwkv", rwkv)).anatomy.qlora is None
