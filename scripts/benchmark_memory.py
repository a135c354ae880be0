"""The memory that `loraft check` predicts, beside what training held at most.

    .venv/bin/python scripts/benchmark_memory.py

Three decoders, SmolLM2-135M-Instruct and two of random numbers (a Llama of six wide layers with grouped heads and a
head of its own, a GPT-2 of eight), each by LoRA, QLoRA and full fine-tuning, on rows of 512 and of 2,048 tokens of
random words, with gradient checkpointing and without: two steps of one row each, so that the second one holds the
optimizer's state beside all else. Each prediction and each run is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmark_record import add_option, gigabytes, record

BUILTIN = "builtin:smollm2-135m-instruct"
METHODS, LENGTHS, CHECKPOINTING = ("lora", "qlora", "full"), (512, 2048), (False, True)


def main() -> None:
    """Measures each cell and prints a line of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="the cells with this in their name, such as gpt2-qlora"
    )
    add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cells = []
        for cell in measured(Path(name), options.only):
            cells.append(cell)
            said = f"peak memory that check predicts, {cell['name']}"
            figure = gigabytes(said, cell["predicted_bytes"], "held while training", cell["held_bytes"])
            record(options.json, [figure])
    if cells:
        print(f"\n{len(cells)} runs, off by {min(c['off'] for c in cells):+.1%} to {max(c['off'] for c in cells):+.1%}")


def measured(folder: Path, only: str) -> Iterator[dict[str, float]]:
    """The cells whose name has `only` in it, each as it is done."""
    models = {"smollm2": BUILTIN, **made_up(folder)}
    print(f"{'':34}{'predicted':>12}{'held':>12}{'off by':>10}")
    for shape, method, length, checkpointing in itertools.product(models, METHODS, LENGTHS, CHECKPOINTING):
        name = f"{shape}-{method}-{length}{'-checkpointed' if checkpointing else ''}"
        if only not in name:
            continue
        config = folder / "run.yaml"
        config.write_text(
            json.dumps(
                {
                    "method": method,
                    "model": {"name_or_path": models[shape], "dtype": "bfloat16"},
                    "data": {
                        "train": str(folder / "rows.jsonl"),
                        "eval": None,
                        "format": "text",
                        "max_length": length,
                        "on_overlength": "truncate",
                    },
                    "training": {
                        "max_steps": 2,
                        "per_device_train_batch_size": 1,
                        "gradient_accumulation_steps": 1,
                        "gradient_checkpointing": checkpointing,
                    },
                }
            )
        )
        predicted = loraft("check", config)["memory"]["peak_bytes"]
        held = loraft("train", config, f"training.output_dir={folder / name}")["peak_bytes"]
        cell = {"name": name, "predicted_bytes": predicted, "held_bytes": held, "off": predicted / held - 1}
        print(f"{name:34}{predicted / 1e9:9.2f} GB{held / 1e9:9.2f} GB{cell['off']:>+10.1%}", flush=True)
        yield cell


def loraft(verb: str, config: Path, *words: str) -> dict:
    """What a command tells as JSON."""
    command = [sys.executable, "-m", "loraft", verb, str(config), *words, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def made_up(folder: Path) -> dict[str, str]:
    """Two models of random numbers with SmolLM2's tokenizer, and rows of random words, in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

    from loraft.config.sections import ModelSection
    from loraft.models.sources import ModelHandle

    tokenizer = AutoTokenizer.from_pretrained(ModelHandle(ModelSection(name_or_path=BUILTIN)).small_files)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    wide = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16}
    of_gpt2 = {"n_embd": 768, "n_layer": 8, "n_head": 12, "n_positions": 4096}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    configs = {
        "wide": LlamaConfig(**wide, num_key_value_heads=4, max_position_embeddings=4096, **ids),
        "gpt2": GPT2Config(**of_gpt2, **no_dropout, **ids),
    }
    torch.manual_seed(0)
    for name, config in configs.items():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    drawn = random.Random(0)
    words = [word for number in range(100, 49_000) if (word := tokenizer.decode([number]).strip()).isalpha()]
    rows = ({"text": " ".join(drawn.choices(words, k=4000))} for _ in range(12))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / name) for name in configs}


if __name__ == "__main__":
    main()
