"""A .gguf file as a folder in transformers' format: weights in float32, tokenizer, chat template.

A .gguf file names the rule by which its tokenizer splits text, and transformers does not know every rule: SmolLM2's
digits stand apart, and without that rule spaces before digits become other tokens than the model was trained with.
So the rules are here, and a tokenizer with an unknown one is left out: `model.tokenizer` then names one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loraft.errors import ModelError, lacking
from loraft.io.resources import ANOTHER_CACHE, disk_errors, require_free_bytes
from loraft.models.auto_model import read_gguf
from loraft.models.hf_config import quietly, quietly_reading

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS_APART = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


RULES: dict[str, pre_tokenizers.PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), DIGITS_APART),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), _by_pattern(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _by_pattern(QWEN2)),
    "tekken": _by_pattern(TEKKEN),
    "gpt-4o": _by_pattern(GPT4O),
}
"""How byte-level tokenizers split text before merging, by the names that .gguf files use; of several the usual first.

Source: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe`.
"""

PROBE = "Hello, wörld!  It's 12 345:\n\n\tdef f(x): return x  # 漢字 😀"


def convert(file: Path, folder: Path) -> None:
    """Write the model of `file` into `folder`, so that plain transformers loads it from there.

    Raises:
        ModelError: The file cannot be read as .gguf, its architecture is not in the table, or gguf is not installed.
        ResourceError: The disk is too small for the weights in float32.
    """
    if problem := lacking("gguf", "a .gguf file", where=file.name, key="model.name_or_path"):
        raise ModelError.several([problem])
    kind, rule, tokens, parameters = _facts(file)
    needed = int(1.05 * 4 * parameters)
    require_free_bytes(folder, needed, f"converting {file.name}")
    model = read_gguf(file)
    with quietly(), disk_errors(folder.parent, remedy=ANOTHER_CACHE, needed=needed):
        model.save_pretrained(folder)
    if rule in RULES or kind != "gpt2":
        with quietly_reading(file):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        if kind == "gpt2":
            tokenizer.backend_tokenizer.pre_tokenizer = RULES[rule]
        _leave_out(tokenizer, tokens)
        tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
        tokenizer.save_pretrained(folder)
        _check_tokenizer(folder, file)
    _tidy(folder)


def _facts(file: Path) -> tuple[Any, Any, int, int]:
    """The kind of the tokenizer, the name of the rule that it splits by, and how many tokens and parameters it has."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        fields = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        kind, rule = (field.contents() if field is not None else None for field in fields)
        tokens = reader.get_field("tokenizer.ggml.tokens")
        parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
        return kind, rule, 0 if tokens is None else len(tokens.data), parameters
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ModelError(f"cannot be read as a .gguf file: {error}", where=file) from error


def _leave_out(tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
    """Leave out the tokens that transformers adds to the file's own: GPT-2's end of text, which Llama 3 lacks, say."""
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    held["added_tokens"] = [added for added in held["added_tokens"] if added["id"] < tokens]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(held))


def _check_tokenizer(folder: Path, file: Path) -> None:
    """What was saved gives text back."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    again = str(tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"]))
    if again.strip() != PROBE:
        raise ModelError(f"its tokenizer does not give text back: {PROBE!r} became {again!r}", where=file)


def _tidy(folder: Path) -> None:
    """Leave what any machine and any version of transformers reads.

    What described this machine goes, and the tokenizer gets the class name that older versions know too.
    """
    for name, dropped in {
        "config.json": ("_name_or_path", "_model_name_or_path"),
        "generation_config.json": ("_from_model_config",),
        "tokenizer_config.json": ("is_local", "local_files_only", "backend", "name_or_path"),
    }.items():
        path = folder / name
        if not path.exists():
            continue
        content = {key: value for key, value in json.loads(path.read_text()).items() if key not in dropped}
        if name == "tokenizer_config.json":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
