"""Tiny models of every family, and a tiny tokenizer: real architectures with random weights, made in milliseconds.

The weights are seeded and scaled so that every part of a model shows in its outputs: biases and norms are perturbed,
soft caps, logit scales and sliding windows are small enough to bite.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from loraft.models.registry import DECODERS, FAMILIES

TINY_MODEL_TYPES = tuple(DECODERS)
TINY_OTHERS = tuple(model_type for model_type in FAMILIES if model_type not in DECODERS)
"""The families of other kinds: encoders and encoder-decoders."""
TELLING = ("llama", "gpt2", "gemma2", "cohere2", "bloom", "mixtral", "t5", "bart", "bert", "deberta-v2")
"""The families that are least like one another: tests of every family are quick with them, and slow with the others."""
VOCABULARY = 320

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
}
ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
TWO_STACKS = {
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
ONLY_OF_ITS_FAMILY: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma2": {**ALTERNATING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": ALTERNATING,
    "cohere": {"logit_scale": 0.5},
    "cohere2": {**ALTERNATING, "logit_scale": 0.5},
    "olmo3": ALTERNATING,
    "exaone4": ALTERNATING,
    "granite": {
        "logits_scaling": 2.0,
        "embedding_multiplier": 1.5,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    },
    "ministral3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1,
                                       "original_max_position_embeddings": 16}},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gpt2": {"n_inner": 48},
    "gpt_bigcode": {"n_inner": 48},
    "t5": {"num_decoder_layers": 2, "d_ff": 48, "relative_attention_num_buckets": 8, "d_kv": 8},
    "mt5": {"num_decoder_layers": 2, "d_ff": 48, "relative_attention_num_buckets": 8, "d_kv": 8},
    "bart": TWO_STACKS,
    "mbart": TWO_STACKS,
    "m2m_100": {**TWO_STACKS, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},  # or a step may train no layer
    "marian": TWO_STACKS,
    "distilbert": {"hidden_dim": 48},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"],
                   "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
OTHER_KINDS = [family.model_type for family in FAMILIES.values() if family.kind != "decoder"]
WITHOUT_GROUPS = ("gpt2", "gpt_bigcode", "gpt_neox", "opt", "bloom", *OTHER_KINDS)
"""Their configs know none of num_key_value_heads and head_dim."""
WITH_INTERMEDIATE = ("gpt_neox", "bert", "roberta", "xlm-roberta", "deberta-v2")
"""Those of them that know intermediate_size by that name."""
BEGIN_WITH_THE_END = ("mbart", "m2m_100")
"""Their decoders begin with the end-of-text token: M2M100 gives a padding token no position."""
HEADS = {"decoder": AutoModelForCausalLM, "encoder_decoder": AutoModelForSeq2SeqLM, "encoder": AutoModelForMaskedLM}


def mostly_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """The values of a test, of which those that are not `quick` run with `--slow` alone; a tuple is several at once."""
    return [value if value in quick else _slow(*(value if isinstance(value, tuple) else (value,))) for value in values]


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A seeded float32 model of the family in eval mode, ready for a forward pass.

    `overrides` go to the config under transformers' common names (`hidden_size`, `num_hidden_layers`, …). Other than
    three layers leave out the families' alternating layer types. An encoder-decoder has three layers and two.
    """
    return copy.deepcopy(_made(model_type, seed, json.dumps(overrides, sort_keys=True)))


@cache
def _made(model_type: str, seed: int, overrides: str) -> PreTrainedModel:
    """The model that copies are given of: made once a process."""
    config = AutoConfig.for_model(model_type, **tiny_sizes(model_type, **json.loads(overrides)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made_by = HEADS[FAMILIES[model_type].kind]
        model: PreTrainedModel = made_by.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # Marian's positions are sines and cosines
                    _scale(parameter)
    return model.eval()


def tiny_sizes(model_type: str, **overrides: Any) -> dict[str, Any]:
    """The keyword arguments of the tiny config of a family."""
    tokenizer = tiny_tokenizer()
    sizes = dict(SIZES)
    if model_type in WITHOUT_GROUPS:
        sizes = {name: size for name, size in sizes.items() if name not in ("num_key_value_heads", "head_dim")}
        if model_type not in WITH_INTERMEDIATE:
            del sizes["intermediate_size"]
    sizes |= ONLY_OF_ITS_FAMILY.get(model_type, {})
    if overrides.get("num_hidden_layers", 3) != 3:
        sizes.pop("layer_types", None)
    if "hidden_size" in overrides and "head_dim" in sizes and "head_dim" not in overrides:
        sizes["head_dim"] = overrides["hidden_size"] // overrides.get(
            "num_attention_heads", sizes["num_attention_heads"]
        )
    ids = {
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if FAMILIES[model_type].kind == "encoder_decoder":
        begins = tokenizer.eos_token_id if model_type in BEGIN_WITH_THE_END else tokenizer.pad_token_id
        ids |= {"decoder_start_token_id": begins, "forced_eos_token_id": None}
    return sizes | ids | overrides


def _scale(parameter: torch.Tensor) -> None:
    """Matrices get outputs of about their inputs' size; what starts at one or zero is moved off it."""
    if parameter.dim() > 1:
        parameter.normal_(std=min(1.5 / parameter.shape[-1] ** 0.5, 0.3))
    else:
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


@cache
def _backend() -> str:
    """The tokenizer as JSON: byte-level BPE, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "user assistant system the customer said that the order is late and the answer is in the text."
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 300 tokens with a chatml template; pad is its own token, eos is `<|im_end|>`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_tiny(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """Write a tiny model and its tokenizer as a folder in transformers' format, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _saved(model_type, json.dumps(overrides, sort_keys=True)).items():
        (folder / name).write_bytes(content)
    return folder


def with_head_apart(folder: Path) -> torch.Tensor:
    """Give a tiny model whose config ties its head one of other numbers, and return it."""
    tensors = load_file(folder / "model.safetensors")
    head = tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return head


@cache
def _saved(model_type: str, overrides: str) -> dict[str, bytes]:
    """The files of such a folder: made once a process."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(model_type, **json.loads(overrides)).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
