"""What scripts/benchmark_gpu.py trains: models of a real geometry with random numbers, made up as they are needed.

No file comes from elsewhere: a word of a row is a token, and there are as many words as the vocabulary has entries.
"""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from loraft.errors import RunError

GEOMETRIES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "llama-2-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
POSITIONS = 2**20
"""More than any row has, so that none is cut: what positions mean does not matter to random weights."""
MOST_TOKENS = 600_000
"""Of a row: more characters than these take are not read as one row by loraft."""
LETTERS = string.digits + string.ascii_letters
SPREAD = 0.02
COMPLETE = "complete"
"""The file that says that a model's folder is whole."""


def write_model(folder: Path, sizes: dict[str, Any], *, device: str, hollow: bool) -> None:
    """A model's folder, in bfloat16; of a hollow one the layers' matrices are zeros that take no disk.

    Raises:
        RunError: The disk has no room.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / COMPLETE).exists():
        return
    config = LlamaConfig(**sizes, max_position_embeddings=POSITIONS, tie_word_embeddings=False, bos_token_id=1,
                         eos_token_id=2, dtype="bfloat16")  # fmt: skip
    with torch.device("meta"):
        parameters = dict(LlamaForCausalLM(config).named_parameters())
    left_out = {name for name, each in parameters.items() if hollow and ".layers." in name and each.dim() > 1}
    needed = sum(2 * each.numel() for name, each in parameters.items() if name not in left_out)
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
        raise RunError(f"the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free", where=str(folder))
    config.save_pretrained(folder)
    write_tokenizer(folder, sizes["vocab_size"])
    torch.manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        for name, each in with_header(file, parameters):
            if name in left_out:
                file.seek(2 * each.numel(), 1)
            else:
                numbers = torch.empty(each.shape, dtype=torch.bfloat16, device=device)
                (numbers.normal_(std=SPREAD) if each.dim() > 1 else numbers.fill_(1)).view(-1)
                numbers.view(torch.uint8).cpu().numpy().tofile(file)
        file.truncate()
    (folder / COMPLETE).touch()


def with_header(file: BinaryIO, parameters: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Write where each tensor will lie, and give them in that order."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, each in parameters.items():
        end = at + 2 * each.numel()
        header[name] = {"dtype": "BF16", "shape": list(each.shape), "data_offsets": [at, end]}  # type: ignore[dict-item]
        at = end
    written = json.dumps(header).encode()
    file.write(len(written).to_bytes(8, "little") + written)
    yield from parameters.items()


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A token for each word, and the three that a tokenizer needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(word(number) for number in range(3, vocabulary))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=POSITIONS, **names).save_pretrained(folder)


def word(number: int) -> str:
    """A number in as few letters and digits as it needs: rows of a million characters are long enough for a reader."""
    high, low = divmod(number, len(LETTERS))
    return (word(high) if high else "") + LETTERS[low]


def write_rows(path: Path, vocabulary: int, lengths: Sequence[int]) -> None:
    """Rows of so many random words, of one letter or two."""
    drawn, short = random.Random(0), [word(number) for number in range(3, min(vocabulary, len(LETTERS) ** 2))]
    with path.open("w") as file:
        for length in lengths:
            file.write(json.dumps({"text": " ".join(drawn.choices(short, k=length))}) + "\n")


def mixed_lengths(tokens: int, lines: int) -> list[int]:
    """Lengths from an eighth to seven eighths of a line, for some more lines than are asked for."""
    drawn, lengths = random.Random(0), []
    while sum(lengths) < (lines + 2) * tokens * 1.05:
        lengths.append(drawn.randint(tokens // 8, tokens * 7 // 8))
    return lengths


def operations(sizes: dict[str, Any], rank: int, lengths: Sequence[int]) -> float:
    """The floating-point operations of training rows of `lengths` by LoRA; what is computed again is not counted.

    Two a number of a frozen matrix and token forward, and two backward, for the gradient of its input; six a number of
    A and B, whose own gradients are needed too. Causal attention takes 2 n² h a layer forward (half of the scores'
    square, times two products) and twice that backward. Embeddings, norms and dequantizing are not counted.
    """
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shapes = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 3
    frozen = layers * sum(a * b for a, b in shapes) + hidden * sizes["vocab_size"]
    adapter = layers * rank * sum(a + b for a, b in shapes)
    return sum(n * (4 * frozen + 6 * adapter) + 6 * n**2 * hidden * layers for n in lengths)


def seconds_of_row(sizes: dict[str, Any], rank: int, tokens: int, rate: float) -> float:
    """How long a step of one row takes at `rate` operations a second, its layers computed twice going forward."""
    return operations(sizes, rank, [tokens]) * 4 / 3 / rate
