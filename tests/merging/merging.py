"""What the tests of merging start from: a tiny base of any family on disk, and an adapter for it that has an effect."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.save_adapter import save_adapter
from loraft.config.sections import QuantizationSection
from loraft.merging.prepare_merge import Merge, prepare_merge, resolve_weighted
from loraft.merging.write_weights import write_company, write_weights
from loraft.models.device import DeviceConfig
from loraft.models.load_model import load_model
from tests.adapters.setting import FACTS, IDS, Rendering, disturb, run_config
from tests.tiny import VOCABULARY, save_tiny, tiny_tokenizer

SMALL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
ATTENTION = {"decoder_start_token_id": 0, "bos_token_id": 1}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "t5": {**SMALL, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {**SMALL, **ATTENTION, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
             "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "bert": {**SMALL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A family, the class that its bases are used as, and what an adapter of it adapts.

    Attributes:
        model_type: The family.
        made_by: The class of transformers.
        targets: `target_modules` of the adapter.
        sizes: What differs from the tiny sizes.
    """

    model_type: str
    made_by: Any = AutoModelForCausalLM
    targets: str | list[str] = "all-linear"
    sizes: tuple[tuple[str, Any], ...] = ()


KINDS = {
    "llama": Kind("llama", sizes=(("tie_word_embeddings", False),)),
    "llama tied": Kind("llama", sizes=(("tie_word_embeddings", True),)),
    "gpt2": Kind("gpt2"),
    "gemma": Kind("gemma"),
    "phi3": Kind("phi3", sizes=(("tie_word_embeddings", False),)),
    "gpt_neox": Kind("gpt_neox"),
    "t5": Kind("t5", AutoModelForSeq2SeqLM, ["q", "k", "v", "o", "wi", "wo"]),
    "bart": Kind("bart", AutoModelForSeq2SeqLM, ["q_proj", "v_proj", "fc1", "out_proj"]),
    "bert": Kind("bert", AutoModelForMaskedLM, ["query", "key", "value", "dense"]),
    "bert classifier": Kind("bert", AutoModelForSequenceClassification, ["query", "value"]),
    "bert stack": Kind("bert", AutoModel, ["query", "value"]),
}


def save_base(folder: Path, kind: str = "llama", *, shard: str = "5GB", dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny base with a tokenizer."""
    made = KINDS[kind]
    if made.made_by is AutoModelForCausalLM:
        save_tiny(folder, made.model_type, **dict(made.sizes))
        model = made.made_by.from_pretrained(folder, dtype=dtype)
        for file in folder.glob("*.safetensors"):
            file.unlink()
    else:
        config = AutoConfig.for_model(made.model_type, **OTHER_SIZES[made.model_type])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = made.made_by.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                parameter.data.normal_(std=0.2)
        model = model.to(dtype)
        tiny_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def load_base(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = KINDS[kind].made_by.from_pretrained(folder, dtype=dtype)
    return model.eval()


def peft_adapter(folder: Path, base: Path, kind: str = "llama", *, seed: int = 1, **lora: Any) -> PeftModel:
    """An adapter as peft makes and saves it, with nothing of loraft's beside it; the adapted model, in eval mode."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": KINDS[kind].targets, **lora})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # peft's, of tied embeddings and the like
        torch.manual_seed(seed)
        model = get_peft_model(load_base(base, kind), config)
        disturb({name: weight for name, weight in model.named_parameters() if weight.requires_grad}, seed)
        model.save_pretrained(folder, save_embedding_layers=False)
    model.eval()
    return model


def own_adapter(
    folder: Path,
    base: Path,
    method: str = "lora",
    *,
    dtype: torch.dtype = torch.float32,
    quantization: QuantizationSection | None = None,
    amount: float = 0.1,
    **lora: Any,
) -> AdaptedModel:
    """An adapter as loraft trains and saves it, on a base of that dtype and storage; `amount` says how far."""
    config = run_config(method, model=str(base), **lora)
    if quantization is not None:
        config = config.model_copy(update={"quantization": quantization})
    placement = DeviceConfig("cpu", dtype, "a test's CPU", 0, 0, ())
    loaded = load_model(config.model, placement, quantization=config.quantization if method == "qlora" else None)
    adapted = attach(loaded, config)
    if amount:
        generator = torch.Generator().manual_seed(1)
        for parameter in adapted.trainable.values():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)
    save_adapter(adapted, folder, config=config, renderer=Rendering(), facts=FACTS)
    adapted.model.eval()
    return adapted


def outputs(model: nn.Module) -> torch.Tensor:
    """Logits, or the hidden states of a model without a head."""
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS
    with torch.no_grad():
        output = model(**inputs)
    found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found.float()


def prepared(*words: str, base_model: str | None = None, target: str | None = None, **choices: Any) -> Merge:
    """What is merged, for words as `--adapter` has them."""
    found, weights = resolve_weighted(target, words, base_model=base_model)
    return prepare_merge(found, weights, **choices)


def written(merge: Merge, folder: Path) -> Path:
    """The merged model as a folder, without report and verification."""
    folder.mkdir(parents=True)
    write_weights(merge, folder, lambda done, total: None)
    write_company(merge, folder)
    return folder
