"""How something is learned: full, by an adapter, or by one beside quantized weights; and which modules it adapts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, chain
from typing import NoReturn

from loraft.config.aliases import SAME_VALUE
from loraft.config.yaml_nodes import Value
from loraft.peers.translation import Translation

WHICH = {"axolotl": "adapter", "llama-factory": "finetuning_type", "trl": "use_peft"}
"""The key that says how something is learned."""
OF_BITS = ("load_in_4bit", "load_in_8bit", "quantization_bit")
OF_4_BITS = (
    "bnb_4bit_quant_type", "quantization_type", "bnb_4bit_use_double_quant", "use_bnb_nested_quant",
    "double_quantization",
)  # fmt: skip
CHOICE = re.compile(r"(\w*)\((\w+(?:\|\w+)*)\)(\w*)")
"""The last part of a pattern for module names, such as (gate|up|down)_proj."""
WHOLE_TEXT = re.compile(r"\^?(model\.)*language_model(\.|\.\*)?")
"""A pattern of axolotl for all that reads and writes text."""
WORD = re.compile(r"^\w+$")
MOST_GROUPS = 100
"""A pattern with more is no plain choice."""
OPTIONAL_PLACE = re.compile(r"\([\w\\.]*\.\)\?")
"""A part of a path that may be missing, such as (shared_experts.)?"""


def translate_method(translation: Translation) -> None:
    """The method, the width of frozen weights, and which modules are adapted.

    Raises:
        ConfigError: It is another kind of adapter.
    """
    name = WHICH[translation.peer]
    said = translation.value(name)
    if said is None and translation.peer == "llama-factory":
        said = "lora"
    translation.refuse_by_table(name)
    bits = _bits(translation)
    method = "full" if said is None or said is False or said in ("full", "none") else "lora"
    if said == "qlora" or (method == "lora" and bits is not None):
        method = "qlora"
    translation.method = method
    _refuse_partly_frozen(translation)
    also: Mapping[str, Value] = {f"lora.use_{said}": True} if said in ("dora", "rslora") else {}
    translation.write(name, {"method": method, **also})
    translation.of_itself({"method": method})
    _write_bits(translation, bits)
    _write_inner_keys(translation)
    if bits == 4:
        why = f"{translation.tool} stores linear modules in 4 bits, and the experts of a mixture are one tensor"
        translation.of_itself({"quantization.experts": False}, why)
        if translation.peer == "trl":
            translation.of_itself({"quantization.double_quant": False})
    if translation.peer == "trl" and translation.value("lora_target_modules") is None:
        why = "where TRL names none peft chooses, of Llama q_proj and v_proj alone: write these for that"
        translation.of_itself({"lora.target_modules": "all-linear"}, why)
    _write_targets(translation)
    if translation.compares and translation.value("disable_dropout") is not False:
        why = f"{translation.tool} switches dropout off where answers are compared"
        translation.write("lora_dropout", {"lora.dropout": 0}, why)
        translation.of_itself({"lora.dropout": 0}, why)


def _refuse_partly_frozen(translation: Translation) -> None:
    """Refuse a file by which some weights of the base learn, where every one would; that all of its text does is so.

    Raises:
        ConfigError: That is so.
    """
    name = "unfrozen_parameters"
    patterns = translation.value(name)
    named = [str(each) for each in (patterns if isinstance(patterns, list) else [patterns]) if each]
    if translation.method != "full":
        translation.leave(name, "an adapter learns, and the weights beside it are frozen")
    elif any(WHOLE_TEXT.fullmatch(each) for each in named):
        translation.leave(name, "the parts of a model that see or hear stay as they are")
    elif named:
        _refuse_other_weights(translation, name)
    if translation.method == "full" and translation.value("lisa_n_layers"):
        _refuse_other_weights(translation, "lisa_n_layers")


def _refuse_other_weights(translation: Translation, name: str) -> NoReturn:
    remedy = "Train an adapter in lora.layers and lora.modules_to_save; or take the key out, and every weight learns."
    translation.refuse(name, "there are no partly frozen models here, and method: full trains every weight", remedy)


def _bits(translation: Translation) -> int | None:
    if translation.value("load_in_8bit") is True and translation.value("adapter") != "qlora":
        return 8
    if translation.value("load_in_4bit") is True:
        return 4
    bits = str(translation.value("quantization_bit", "quantize", "bits") or "")
    return {"4": 4, "4bit": 4, "nf4": 4, "8": 8, "8bit": 8}.get(bits)


def _write_bits(translation: Translation, bits: int | None) -> None:
    for name in OF_4_BITS if bits == 8 else ():
        translation.leave(name, "it is of 4 bits, and weights are stored in 8")
    for name in OF_BITS:
        value = translation.value(name)
        if value is None or value is False:
            translation.by_table(name)
        elif translation.method == "full":
            translation.leave(name, "method: full trains every weight, and none is quantized")
        elif bits == 8:
            translation.write(name, {"method": "qlora", "quantization.type": "int8"})
        elif bits == 4:
            translation.write(name, {"method": "qlora"})
        else:
            translation.leave(name, f"there is no width of {value} bits: method: qlora has 4 and 8; the method is lora")


def _write_inner_keys(translation: Translation) -> None:
    """What axolotl hands on to bitsandbytes and to peft."""
    name = "bnb_config_kwargs"
    said = translation.value(name)
    if isinstance(said, dict) and translation.method == "qlora":
        for key in said.keys() - SAME_VALUE.keys():
            translation.detail(name, f"{name}.{key}", said[key], "the section quantization has nothing like it")
        if known := {SAME_VALUE[key]: value for key, value in said.items() if key in SAME_VALUE}:
            translation.write(name, known)
    if translation.peer == "axolotl":
        translation.leave("peft", "lora.init: loftq, of method: qlora, starts an adapter by LoftQ")


def _write_targets(translation: Translation) -> None:
    if translation.value("lora_target_linear") is True:
        translation.by_table("lora_target_linear")
        translation.leave("lora_target_modules", "all-linear, by lora_target_linear, has them all")
    translation.leave("lora_target_linear", "lora.target_modules names them")
    for name in ("lora_target_modules", "lora_target"):
        value = translation.value(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value.lower() in ("all", "all-linear"):
            translation.write(name, {"lora.target_modules": "all-linear"})
            continue
        if not isinstance(value, str):
            translation.by_table(name)
            continue
        names = [each.strip() for each in value.split(",")]
        if all(re.fullmatch(r"[\w.]+", each) for each in names):
            translation.write(name, {"lora.target_modules": list[Value](names)})
        elif found := names_of_pattern(value):
            why = "the names at the end of the pattern, in every layer; lora.layers chooses among layers"
            translation.write(name, {"lora.target_modules": list[Value](found)}, why)
        else:
            translation.leave(name, "is a pattern; lora.target_modules takes names: write them (else all-linear)")
    named = [row for row in translation.rows if isinstance(row.becomes.get("lora.target_modules"), list)]
    if not named:
        why = f"{translation.tool} adapts linear modules alone, and the experts of a mixture are one tensor"
        translation.of_itself({"lora.experts": False}, why)


def names_of_pattern(pattern: str) -> list[str]:
    """The module names that a regular expression ends in; none where that is no plain choice."""
    if pattern.count("(") > MOST_GROUPS:
        return []
    plain = OPTIONAL_PLACE.sub("", pattern.strip("^$").replace("(?:", "("))
    last = _split(plain, ".")[-1].lstrip("*")
    choices = _split(plain, "|")
    if len(choices) == 1 and _is_group(last):
        choices = _split(last[1:-1], "|")
    if choices != [plain]:
        found = [names_of_pattern(each) for each in choices]
        return [*dict.fromkeys(chain.from_iterable(found))] if all(found) else []
    names = CHOICE.fullmatch(last)
    return [f"{names[1]}{word}{names[3]}" for word in names[2].split("|")] if names else WORD.findall(last)


def _split(pattern: str, at: str) -> list[str]:
    """The parts of a pattern between the characters `at` that stand in no group and in no set."""
    parts, depth = [""], 0
    for each in pattern:
        depth += (each in "([") - (each in ")]")
        if each == at and depth == 0:
            parts.append("")
        else:
            parts[-1] += each
    return parts


def _is_group(pattern: str) -> bool:
    """Whether one pair of parentheses holds all of it."""
    depths = [*accumulate((each == "(") - (each == ")") for each in pattern)]
    return pattern.endswith(")") and 0 not in depths[:-1]
