"""Part 5: what LoRA adds, what it trains, and what merging does."""

from __future__ import annotations

from loraft.tour.screens import Document, Fact, Part, Screen, Shown, percent

QUERIES_AND_VALUES = "r=8,target_modules=[q_proj,v_proj]"


def _update(begun: Document, _: Document, report: Document) -> str:
    adapter, idle = report["adapters"][0], begun["gradients"]["idle"]
    kinds = ", ".join(sorted({"A" if ".lora_A." in name else "B" for name in idle}))
    return (
        f"before the first step no gradient comes to {kinds} of any pair, since the other is zero; after four steps, "
        f"with r {adapter['ranks'][0]} and alpha {adapter['alpha']:g}, ‖ΔW‖ is {adapter['norm']:.3f}, "
        f"{percent(adapter['relative'], 2)} of ‖W‖"
    )


def _moved(_begun: Document, _: Document, report: Document) -> str:
    layers = report["adapters"][0]["layers"]
    shares = ", ".join(f"layer {each['index']} {percent(each['relative'], 2)}" for each in layers[::10])
    return f"‖ΔW‖ in parts of ‖W‖ after four steps: {shares}"


def _held(_begun: Document, _: Document, report: Document) -> str:
    adapter = report["adapters"][0]
    return f"this one holds {adapter['parameters']:,} numbers in {', '.join(adapter['dtypes'])}"


LORA = Part(
    "LoRA",
    (
        Screen(
            "LoRA leaves a weight W as it is and trains two narrow matrices beside it, A of r rows and B of r columns. "
            "Here they are counted on Llama-2-7B, of which the config alone is needed: for queries and values, and for "
            "all linear layers.",
            (
                Shown(f"inspect-layers llama-2-7b --lora {QUERIES_AND_VALUES}", only=("modules", "LoRA")),
                Shown("inspect-layers llama-2-7b --lora r=16", only=("LoRA",)),
            ),
            (
                Fact(
                    "rank 8 on 4096 × 4096: 64 K instead of 16 M",
                    "a matrix: 65,536 against 16,777,216; q and v in 32 layers: 4,194,304",
                    "{0[layers][0][modules][0][name]}: {0[layers][0][modules][0][lora_parameters]:,} beside "
                    "{0[layers][0][modules][0][parameters]:,}; all {0[lora][modules]} targets: "
                    "{0[lora][parameters]:,}".format,
                ),
                Fact(
                    "q and v are the usual targets",
                    "in the 2021 paper; all linear layers, the MLP above all, is today's default and better at equal "
                    "parameters",
                    "q and v: {0[lora][modules]} modules, {0[lora][parameters]:,} parameters; all linear layers: "
                    "{1[lora][modules]} modules, {1[lora][parameters]:,}".format,
                ),
            ),
        ),
        Screen(
            "A new adapter changes nothing: its B is zero. Four steps of training make it one that does; then its "
            "update is looked at, module by module, without running the model.",
            (
                Shown("inspect-layers --gradients lora.yaml"),
                Shown("train lora.yaml --overwrite"),
                Shown("inspect-layers lora-run", only=("adapters",)),
            ),
            (
                Fact(
                    "ΔW = A × B",
                    "ΔW = (alpha / r) · B · A with A [r, in], B [out, r]; alpha / √r with rsLoRA; B starts at zero, so "
                    "ΔW does",
                    _update,
                ),
                Fact(
                    "an adapter is a few MB",
                    "Llama-2-7B: 17 MB (r 8, q and v, float32), 160 MB (r 16, all linear, float32)",
                    _held,
                ),
                Fact(
                    "the last few layers are the usual choice",
                    "all layers are; where early ones may change, they do",
                    _moved,
                ),
            ),
        ),
        Screen(
            "A server may want one model without anything beside its weights. Merging adds ΔW to W once and writes "
            "the result; loraft compares what comes out with what was trained before it keeps it.",
            (Shown("merge lora-run merged --dtype bfloat16 --overwrite"),),
            (
                Fact(
                    "adapters are merged dynamically at inference",
                    "unmerged they are a parallel branch; merging is a separate step, lossy in 16 bits",
                    "{0[changed_tensors]} tensors rewritten; adapted and merged models differ by KL "
                    "{0[kl_adapted_merged]:.1e} in {0[dtype]}, adapted and base by {0[kl_adapted_base]:.1e}".format,
                ),
            ),
        ),
    ),
)
