"""Part 11: LoRA on a base whose weights are kept in 4 bits."""

from __future__ import annotations

from loraft.tour.screens import Document, Fact, Part, Screen, Shown

QLORA_ONCE, LORA_ONCE = "train qlora.yaml --overwrite", "train lora.yaml --overwrite"


def _weights(qlora: Document, single: Document, lora: Document) -> str:
    return (
        f"weights by prediction: {qlora['memory']['weights']:,} bytes, {single['memory']['weights']:,} without double "
        f"quantization, {lora['memory']['weights']:,} in {lora['model']['dtype']}"
    )


def _frozen(qlora: Document, *_: Document) -> str:
    model = qlora["model"]
    return (
        f"{model['quantized_parameters']:,} of {model['parameters']:,} parameters in 4 bits; not quantised: "
        f"{model['not_quantized']}; trained: {qlora['adapter']['trainable_parameters']:,} beside them"
    )


def _full(full: Document) -> str:
    memory = full["memory"]
    return (
        f"by prediction, of {full['model']['parameters']:,} parameters: weights {memory['weights']:,} bytes, gradients "
        f"{memory['gradients']:,}, optimizer {memory['optimizer']:,}"
    )


def _times(lora: Document, qlora: Document) -> str:
    return f"the same four steps and evaluation: {lora['seconds']:.1f} s with LoRA, {qlora['seconds']:.1f} s with QLoRA"


def _peaks(lora: Document, qlora: Document) -> str:
    more = qlora["peak_bytes"] >= lora["peak_bytes"]
    return f"peak memory {lora['peak_bytes']:,} bytes with LoRA, {qlora['peak_bytes']:,} with QLoRA" + (
        ": a model as small as this one gains nothing by it" if more else ""
    )


def _merges(_: Document, dequantized: Document, original: Document) -> str:
    return (
        f"KL between what was trained and what was merged: {dequantized['kl_adapted_merged']:.1e} into the base as "
        f"training saw it, {original['kl_adapted_merged']:.1e} into the original one"
    )


QLORA = Part(
    "QLoRA",
    (
        Screen(
            "QLoRA keeps the frozen weights in 4 bits, 64 at a time with a constant of their own, and trains LoRA "
            "beside them. What that saves is predicted here before anything is loaded.",
            (
                Shown("check qlora.yaml", only=("model", "memory")),
                Shown("check qlora.yaml quantization.double_quant=false", only=("memory",)),
                Shown("check lora.yaml", only=("memory",)),
            ),
            (
                Fact(
                    "double quantization stores the weights smaller",
                    "it quantises the block constants (one float32 for 64 weights, to 8 bits in blocks of 256): 0.5 → "
                    "0.127 bit a parameter, about 3 GB at 65B",
                    _weights,
                ),
                Fact(
                    "the quantised model stays mostly frozen",
                    "wholly; embeddings, norms and head are not quantised",
                    _frozen,
                ),
            ),
        ),
        Screen(
            "Without an adapter all weights are trained: each needs its gradient and two numbers of Adam beside it.",
            (Shown("check lora.yaml method=full", only=("memory",)),),
            (
                Fact(
                    "full fine-tuning fits an 80 GB card",
                    "7B with Adam in mixed precision needs about 16 bytes a parameter, 108 GB",
                    _full,
                ),
                Fact(
                    "13B, 33B, 65B on a consumer GPU",
                    "by the paper 33B in 24 GB, 65B in 48 GB",
                ),
                Fact(
                    "",
                    "paged optimizers are the third idea: optimizer state moves to the CPU when the GPU is short",
                ),
            ),
        ),
        Screen(
            "The same four steps, once with LoRA and once with QLoRA.",
            (Shown(LORA_ONCE), Shown(QLORA_ONCE)),
            (
                Fact(
                    "no dequantisation during training",
                    "each product dequantises its blocks to the compute dtype, forward and backward; only storage is "
                    "4-bit",
                    _times,
                ),
                Fact(
                    "QLoRA is the fastest", "slower than LoRA; it buys memory, where the weights are most of it", _peaks
                ),
            ),
        ),
        Screen(
            "A QLoRA adapter has learned beside the rounded weights, and makes up for their errors. Merged into the "
            "base as training saw it, the model is the one that was trained; merged into the original one it is not.",
            (
                Shown(QLORA_ONCE),
                Shown("merge qlora-run merged --dtype bfloat16 --overwrite"),
                Shown("merge qlora-run merged --base original --dtype bfloat16 --overwrite"),
            ),
            (
                Fact(
                    "",
                    "a QLoRA adapter merged into the 16-bit base is not the model that was trained",
                    _merges,
                ),
            ),
        ),
    ),
)
