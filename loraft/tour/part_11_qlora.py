"""Part 11: LoRA on a base whose weights are kept in 4 bits."""

from __future__ import annotations

from loraft.tour.screens import Document, Fact, Part, Screen, Shown


def _counted(*documents: Document) -> str:
    large = documents[3:]
    return "weights alone, counted from the config: " + "; ".join(
        f"{each['model']} {each['qlora']['bytes']:,} bytes" for each in large
    )


def _paged(_: Document, machine: Document) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')}: {found}"
        for name, found in machine["bitsandbytes"].items()
        if name.startswith("paged")
    )


def _measured(costs: Document) -> dict[str, Document]:
    return {each["method"]: each["measured"] for each in costs["methods"] if each["measured"]}


def _full(costs: Document, _: Document) -> str:
    full = _measured(costs).get("full")
    if full is None:
        return "it does not fit here"
    memory = full["memory"]
    return (
        f"of {full['total_parameters']:,} parameters: weights {memory['weights']:,} bytes, gradients "
        f"{memory['gradients']:,}, optimizer {memory['optimizer']:,}"
    )


def _speeds(costs: Document, _: Document) -> str:
    return "; ".join(f"{name}: {each['tokens_per_second']:.0f} tokens/s" for name, each in _measured(costs).items())


def _peaks(costs: Document, _: Document) -> str:
    return "; ".join(
        f"{name}: weights {each['memory']['weights']:,} bytes, peak {each['memory']['peak_bytes']:,}"
        for name, each in _measured(costs).items()
    )


QLORA = Part(
    "QLoRA",
    (
        Screen(
            "QLoRA keeps the frozen weights in 4 bits, 64 at a time with a constant of their own, and trains LoRA "
            "beside them. What that saves is predicted here before anything is loaded; `runtime` is what the process "
            "holds already, the tour so far included.",
            (
                Shown("check qlora.yaml", only=("model", "memory")),
                Shown("check qlora.yaml quantization.double_quant=false", only=("memory",)),
                Shown("check lora.yaml", only=("memory",)),
                Shown("inspect-layers llama-33b", only=("model",)),
                Shown("inspect-layers llama-65b", only=("model",)),
            ),
            (
                Fact(
                    "double quantization stores the weights smaller",
                    "it quantises the block constants (one float32 for 64 weights, to 8 bits in blocks of 256): 0.5 → "
                    "0.127 bit a parameter, about 3 GB at 65B",
                    "weights by prediction: {0[memory][weights]:,} bytes, {1[memory][weights]:,} without double "
                    "quantization, {2[memory][weights]:,} in {2[model][dtype]}".format,
                ),
                Fact(
                    "the quantised model stays mostly frozen",
                    "wholly; embeddings, norms and head are not quantised",
                    "{0[model][quantized_parameters]:,} of {0[model][parameters]:,} parameters in 4 bits; not "
                    "quantised: {0[model][not_quantized]}; trained: {0[adapter][trainable_parameters]:,} beside "
                    "them".format,
                ),
                Fact(
                    "13B, 33B, 65B on a consumer GPU",
                    "by the paper 33B in 24 GB, 65B in 48 GB; what is needed besides the weights shows on a GPU alone",
                    _counted,
                ),
            ),
        ),
        Screen(
            "What each method costs is measured here, two steps of each in a process of its own. Without an adapter "
            "each weight needs its gradient and two numbers of Adam beside it. Of a model this small the weights are a "
            "small part of the peak, so that 4 bits save little of it.",
            (Shown("compare lora.yaml --steps 2"), Shown("doctor", only=("bitsandbytes",))),
            (
                Fact(
                    "full fine-tuning fits an 80 GB card",
                    "7B with Adam in mixed precision needs about 16 bytes a parameter, 108 GB",
                    _full,
                ),
                Fact(
                    "no dequantisation during training",
                    "each product dequantises its blocks to the compute dtype, forward and backward; only storage is "
                    "4-bit",
                    _peaks,
                ),
                Fact("QLoRA is the fastest", "slower than LoRA; it buys memory", _speeds),
                Fact(
                    "",
                    "paged optimizers are the third idea: optimizer state moves to the CPU when the GPU is short",
                    _paged,
                ),
            ),
        ),
        Screen(
            "A QLoRA adapter has learned beside the rounded weights, and makes up for their errors. Merged into the "
            "base as training saw it, the model is the one that was trained; merged into the original one it is not.",
            (
                Shown("train qlora.yaml --overwrite"),
                Shown("merge qlora-run merged --dtype bfloat16 --overwrite"),
                Shown("merge qlora-run merged --base original --dtype bfloat16 --overwrite"),
            ),
            (
                Fact(
                    "",
                    "a QLoRA adapter merged into the 16-bit base is not the model that was trained",
                    "KL between what was trained and what was merged: {1[kl_adapted_merged]:.1e} into the base as "
                    "training saw it, {2[kl_adapted_merged]:.1e} into the original one".format,
                ),
            ),
        ),
    ),
)
