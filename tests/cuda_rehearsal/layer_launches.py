"""A process of its own that counts the kernels of a Llama layer, trained by loraft and by peft on the same model.

`python -m tests.cuda_rehearsal.layer_launches LIBRARY`
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

if __name__ == "__main__":  # before torch is imported, which remembers that there is no CUDA
    ctypes.CDLL(sys.argv[1])

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cuda_rehearsal.device import CUDA, rehearsal
from tests.cuda_rehearsal.geometry import GEOMETRIES, held, on_device
from tests.cuda_rehearsal.pretend import leave, pretend

SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
FEW, MORE, TOKENS = 2, 4, 64


def by_loraft(method: str, layers: int, *, dora: bool) -> int:
    """The launches of a step with one row."""
    GEOMETRIES["counted"] = SIZES | {"num_hidden_layers": layers}
    with tempfile.TemporaryDirectory() as place:
        os.environ["LORAFT_CACHE"] = str(Path(place) / "cache")
        more = {"lora.use_dora": dora}
        return int(held(Path(place), "counted", method, checkpointing=False, tokens=TOKENS, more=more)["launches"])


def by_peft(method: str, layers: int, *, dora: bool) -> int:
    """The launches of its forward and backward pass, under autocast, with attention in one kernel."""
    with rehearsal() as ledger:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers, tie_word_embeddings=False))
        model = model.to(torch.bfloat16)
        on_device(model, in_4_bits=method == "qlora")
        if method == "qlora":
            model.is_loaded_in_4bit = model.is_quantized = True  # type: ignore[assignment]
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_dora=dora)
        adapted = get_peft_model(model, config).train()
        adapted.to(CUDA)
        ids = torch.ones(1, TOKENS, dtype=torch.long).pin_memory().to(CUDA, non_blocking=True)
        with ledger.since() as found:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
    return sum(found.launches.values())


def main() -> None:
    """Print the launches of a layer as JSON."""
    pretend()
    counted = {
        f"{method}{' with DoRA' * dora} {name}": (launches(method, MORE, dora=dora) - launches(method, FEW, dora=dora))
        / (MORE - FEW)
        for dora in (False, True)
        for method in ("lora", "qlora")
        for name, launches in (("loraft", by_loraft), ("peft", by_peft))
    }
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
    leave()
