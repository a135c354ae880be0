"""The tiny models of the zoo: what types there are, their random weights, and a folder as one has it on a disk."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from tests.tiny import tiny_tokenizer
from tests.zoo.tiny_configs import tiny_config

LABELS = 3
"""The classes of a text that classifiers tell."""

ALSO_NEEDED: Mapping[str, Mapping[str, int]] = {
    "molmo2": {"mm_token_type_ids": 0},
    "paligemma": {"token_type_ids": 1},
}
"""Inputs without which a type is not trained, or reads on, with the value that says of a token that it is text."""


@dataclass(frozen=True)
class Group:
    """The models of one of transformers' mappings.

    Attributes:
        auto: transformers' class that makes them of a config.
        model_types: Their types; one that stands in a group before is that group's.
    """

    auto: Any
    model_types: tuple[str, ...]


CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
SEQ2SEQ = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
CLASSIFICATION = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
IMAGE_TEXT = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
GROUPS: Mapping[str, Group] = {
    "causal": Group(transformers.AutoModelForCausalLM, tuple(CAUSAL)),
    "seq2seq": Group(transformers.AutoModelForSeq2SeqLM, tuple(SEQ2SEQ)),
    "classification": Group(transformers.AutoModelForSequenceClassification, tuple(CLASSIFICATION)),
    "multimodal": Group(
        transformers.AutoModelForImageTextToText, tuple(t for t in IMAGE_TEXT if t not in CAUSAL and t not in SEQ2SEQ)
    ),
}
ALL = tuple((group, model_type) for group, each in GROUPS.items() for model_type in each.model_types)
"""Every type in every group."""
MOST_USED = (
    *(("causal", model_type) for model_type in (
        "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "qwen3_moe", "mixtral",
        "gpt_oss", "olmoe", "falcon", "mamba", "lfm2", "qwen3_next",
    )),
    ("seq2seq", "t5"), ("seq2seq", "bart"), ("classification", "bert"), ("classification", "modernbert"),
)  # fmt: skip
"""The twenty that are used most: of these every cell works."""
QUICK = (
    ("causal", "llama"), ("causal", "mixtral"), ("causal", "mamba"), ("seq2seq", "t5"), ("classification", "bert"),
)  # fmt: skip
"""One of each kind: tests of them are not slow."""


def build(model_type: str, group: str) -> PreTrainedModel:
    """A seeded float32 model in eval mode, every part of which shows in what it gives."""
    config = tiny_config(model_type, group)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(model_type.encode()))
        model: PreTrainedModel = GROUPS[group].auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    scale(parameter)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0  # as loading makes it
    return model.eval()


def scale(parameter: torch.Tensor) -> None:
    """Matrices get outputs of about their inputs' size; what starts at one or zero is moved off it."""
    if parameter.dim() > 1:
        parameter.normal_(std=min(1.5 / parameter.shape[-1] ** 0.5, 0.3))
    else:
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


def save(model: PreTrainedModel, folder: Path, *, ends: bool = False) -> Path:
    """A folder with the model and the tiny tokenizer, which `ends` each text with the end-of-text token if asked to."""
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if ends:
        end = tokenizer.eos_token, tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
        )
    tokenizer.save_pretrained(folder)
    return folder


WITHOUT_MASK = (("xlnet", "causal"),)
"""Where transformers takes no mask of several rows: XLNet's attention to what came before."""


def batch(model: PreTrainedModel, group: str, rows: int = 2, length: int = 16) -> dict[str, torch.Tensor]:
    """Random texts of one length that end with the end-of-text token, with what the model is to learn of them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 290, (rows, length), generator=generator)
    tokens[:, -1] = tiny_tokenizer().eos_token_id
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if (model.config.model_type, group) in WITHOUT_MASK:
        del given["attention_mask"]
    given |= also_needed(model, tokens)
    if group == "classification":
        return given | {"labels": torch.arange(rows) % LABELS}
    if model.config.is_encoder_decoder:
        return given | {"labels": torch.randint(3, 290, (rows, length - 3), generator=generator)}
    return given | {"labels": tokens.clone()}


def also_needed(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model is to be given besides its tokens, `[rows, time]`."""
    said = ALSO_NEEDED.get(model.config.model_type, {})
    return {name: torch.full_like(tokens, value) for name, value in said.items()}
