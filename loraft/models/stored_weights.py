"""Models whose files hold quantized weights: by which method, whether they can be read here, and how they are loaded.

bitsandbytes' weights stay as they are in memory, and each product dequantizes them. Others become ordinary weights
while they are loaded, where transformers can do that. The files are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError, lacking
from loraft.models.hf_config import quietly, reason, written_config

KEY = "quantization_config"
COMPRESSED = "compressed-tensors"
UNPACKED = ("fp8", "mxfp4", COMPRESSED)
"""The methods whose weights transformers makes ordinary ones while it loads them."""
IN_INT32 = ("gptq", "awq")
"""The methods whose weights are made ordinary ones here: transformers needs a GPU's kernels to use them as they are."""
LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
ORIGINAL = "Name the model that it was made of: method: qlora quantizes it while loading."


@dataclass(frozen=True)
class StoredWeights:
    """How the files of a model hold its weights, where these are quantized.

    Attributes:
        method: What its config.json calls the method.
        quantization: The same in the words of a config, for bitsandbytes; such weights stay quantized in memory.
    """

    method: str
    quantization: QuantizationSection | None = None

    @property
    def words(self) -> str:
        """What is said of it."""
        return self.quantization.words if self.quantization else self.method


def stored_weights(config: Mapping[str, Any]) -> StoredWeights | None:
    """How the files of the model with this config.json hold its weights; None where they are plain numbers."""
    settings = config.get(KEY)
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        return StoredWeights("an unknown method")
    if settings.get("load_in_8bit"):
        return StoredWeights("bitsandbytes", QuantizationSection(type="int8", experts=False))
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    if settings.get("load_in_4bit") and kind in ("nf4", "fp4"):
        double = settings.get("bnb_4bit_use_double_quant") is True
        return StoredWeights("bitsandbytes", QuantizationSection(type=kind, double_quant=double, experts=False))
    return StoredWeights(str(settings.get("quant_method", "an unknown method")))


def require_readable(file: Path) -> None:
    """Refuse a config.json whose model's files hold weights that this machine cannot read.

    Raises:
        ModelError: A package is missing, as transformers says; or there is no training on such weights.
    """
    config = written_config(file)
    stored = stored_weights(config)
    if stored is None:
        return
    where, said = str(file), f"the weights are quantized ({stored.words})"
    if stored.method in IN_INT32:
        _refuse_another_layout(stored.method, config[KEY], where)
        return
    if stored.quantization is None and stored.method not in UNPACKED:
        raise ModelError(f"{said}, and loraft does not train on such weights", where=where, remedy=ORIGINAL)
    if stored.method == COMPRESSED and (absent := lacking("compressed_tensors", f"{said}: reading them", where=where)):
        raise ModelError.several([absent])
    try:
        with quietly():
            quantizer: Any = AutoHfQuantizer.from_config(dict(config[KEY]), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # what its many methods raise where something is missing has no common root
        raise ModelError(f"{said}, and cannot be read here: {reason(error)}", where=where, remedy=ORIGINAL) from error


def _refuse_another_layout(method: str, settings: Mapping[str, Any], where: str) -> None:
    bits, allowed = settings.get("bits", settings.get("w_bit", 4)), (2, 4, 8) if method == "gptq" else (4,)
    layout = layout_of(method, settings)
    if bits in allowed and layout in LAYOUTS[method]:
        return
    others = f"{' or '.join(map(str, allowed))} bits, laid out as {' or '.join(LAYOUTS[method])}"
    message = f"the weights are quantized ({method} in {bits} bits, laid out as {layout}); read are those in {others}"
    raise ModelError(message, where=where, key=KEY, remedy=ORIGINAL)


def layout_of(method: str, settings: Mapping[str, Any]) -> str:
    """How the numbers of a method of `IN_INT32` lie side by side."""
    return str(settings.get("checkpoint_format") or settings.get("version") or LAYOUTS[method][0]).lower()


def refuse_another_quantization(stored: StoredWeights | None, asked: QuantizationSection | None) -> None:
    """Weights that are quantized are not quantized again: what is asked for must be what they are.

    Raises:
        ModelError: It is not.
    """
    if stored is None or asked is None:
        return
    if stored.quantization is None:
        message = f"the weights are quantized already ({stored.words}), and become ordinary ones while they are loaded"
        raise ModelError(message, key="quantization.type", remedy="Leave it out, or name the unquantized model.")
    if stored.quantization.type != asked.type:
        message = f"the weights are quantized already, in {stored.quantization.type} and not in {asked.type}"
        remedy = f"Write quantization.type: {stored.quantization.type}, or name the unquantized model."
        raise ModelError(message, key="quantization.type", remedy=remedy)


def loading_as_stored(config: PreTrainedConfig, stored: StoredWeights, compute: torch.dtype) -> None:
    """Tell transformers, by a model's config, how weights that are quantized are loaded."""
    settings = dict(getattr(config, KEY))
    if stored.method in IN_INT32:
        delattr(config, KEY)
        return
    if stored.quantization is None:
        settings["dequantize"] = True
    else:
        settings["bnb_4bit_compute_dtype"] = str(compute).removeprefix("torch.")
    setattr(config, KEY, settings)
