"""A process of its own that counts what a token of an answer launches and waits for, launch by launch and as a graph.

`python -m tests.cuda_rehearsal.token_launches LIBRARY`
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

if __name__ == "__main__":  # before torch is imported, which remembers that there is no CUDA
    ctypes.CDLL(sys.argv[1])

import torch
from peft import LoraConfig, get_peft_model

from loraft.inference import engine
from loraft.inference.decoder_state import ordinary_attention
from loraft.inference.sampling import SamplingParams
from tests.cuda_rehearsal.device import CUDA, rehearsal
from tests.cuda_rehearsal.geometry import on_device
from tests.cuda_rehearsal.pretend import leave, pretend
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.wide import wide_sizes

PROMPTS, TOKENS = [[5, 9, 200, 31, 7], [4, 8]], 12
KINDS = ("llama", "gemma2", "gpt2", "t5", "llama in 4 bits")


def counted(kind: str, *, graphs: bool, temperature: float) -> dict[str, Any]:
    """What each token of an answer to two prompts launched, waited for and copied."""
    name = kind.split(maxsplit=1)[0]
    with rehearsal() as ledger:
        model: Any = tiny_model(name, **wide_sizes(name)).to(torch.bfloat16)
        if kind != name:
            on_device(model, in_4_bits=True)
            model.is_loaded_in_4bit = model.is_quantized = True
        targets = "all-linear" if name != "gpt2" else ["c_attn"]
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=name == "gpt2"))
        adapted.to(CUDA)
        settings: Any = {"rules": SamplingParams(temperature=temperature), "max_new_tokens": TOKENS, "stop_ids": ()}
        answers = engine.open_answers(adapted, tiny_tokenizer(), PROMPTS, settings)
        found = []
        with ordinary_attention(adapted):
            context = engine._context(adapted, answers, settings | {"cuda_graphs": graphs})
            steps = engine._decode(context, answers, None)
            for _ in range(TOKENS):
                with ledger.since() as of_token:
                    next(steps)
                found.append(of_token)
    assert not graphs or (context._fixed is not None and context._fixed._replay is not None), "nothing was recorded"
    return {
        "launches": [sum(each.launches.values()) for each in found],
        "waits": [sum(each.waits.values()) for each in found],
        "copies": [dict(each.copies) for each in found],
    }


def main() -> None:
    """Print the counts as JSON."""
    pretend()
    torch.set_num_threads(1)
    print(
        json.dumps({
            kind: {
                how: counted(kind, graphs=how == "graph", temperature=1.0 if kind == "llama" else 0.0)
                for how in ("launches", "graph")
            }
            for kind in KINDS
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
    leave()
