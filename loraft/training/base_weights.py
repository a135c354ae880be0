"""How the base of a run is stored and where its head begins: what is decided of it, and what is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraft.config.schema import RunConfig
from loraft.config.sections import QuantizationSection
from loraft.errors import ModelError
from loraft.models.hf_config import class_names, is_classifier
from loraft.models.load_model import load_any_config
from loraft.models.sources import ModelHandle
from loraft.models.stored_weights import StoredWeights, refuse_another_quantization


def quantization_of(run: RunConfig, stored: StoredWeights | None) -> QuantizationSection | None:
    """How the frozen weights are in memory: as the files have them, or as the config asks for it.

    Raises:
        ModelError: Files with quantized weights, and a config that asks for others or trains every weight.
    """
    asked = run.quantization if run.method == "qlora" else None
    if asked is not None and stored is not None and stored.quantization is None:
        message = f"the weights are quantized already ({stored.words}), and become ordinary ones while they are loaded"
        remedy = "Write method: lora, which trains an adapter on them as they are, or name the unquantized model."
        raise ModelError(message, key="method", remedy=remedy)
    refuse_another_quantization(stored, asked)
    if stored is None:
        return asked
    if run.method == "full":
        message = f"the weights are quantized ({stored.words}), and method: full would train every one of them"
        raise ModelError(message, key="method", remedy="Write method: lora, or name the unquantized model.")
    return stored.quantization


def stored_notes(run: RunConfig, stored: StoredWeights | None) -> Iterator[str]:
    """What files with quantized weights mean for a run."""
    if stored is None:
        return
    if stored.quantization is None:
        said = f"the weights are stored by {stored.method}, and become ordinary ones while they are loaded"
        yield f"{said}: in memory they take as much as those of any model"
        return
    as_they_are = f"the weights are quantized already ({stored.words}), and are trained on as they are"
    yield f"{as_they_are}: method: lora is then QLoRA" if run.method == "lora" else as_they_are
    if run.method == "qlora" and run.quantization.double_quant != stored.quantization.double_quant:
        yield f"quantization.double_quant is {str(stored.quantization.double_quant).lower()}, as the weights are"


def head_notes(run: RunConfig, model: ModelHandle, new: Sequence[str]) -> Iterator[str]:
    """What there is to say about where a classifier's head begins."""
    base = load_any_config(model)
    if run.method != "full" and run.lora.start_from is not None:
        yield "the head for classes is that of lora.start_from, and training goes on with it"
    elif not new:
        yield "the base has a head for these classes, and training goes on with it"
    elif is_classifier(base):
        classes = ", ".join(class_names(base))
        yield f"the base has a head for other classes ({classes}): {' and '.join(new)} begins anew"
    else:
        begin = "begin" if len(new) > 1 else "begins"
        yield f"the base has no head for classes: {' and '.join(new)} {begin} with random numbers, by the seed"
