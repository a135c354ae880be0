"""Part 8: how a recurrent network and a transformer write."""

from __future__ import annotations

from loraft.tour.part_1_tokens import WITHOUT_CACHE, prompt_at_once
from loraft.tour.part_7_recurrent import BASELINE, TRAINED, networks
from loraft.tour.screens import DECODER, Document, Fact, Part, Screen, Shown


def _one_by_one(_: Document, report: Document) -> str:
    return "; ".join(
        f"{name}: read {each['tokens_per_second']:,.0f} tokens/s, wrote {each['writing']['tokens']} in "
        f"{each['writing']['seconds']:.2f} s"
        for name, each in networks(report).items()
        if each["writing"]
    )


def _copied(_: Document, report: Document) -> str:
    sample = report["samples"][0]
    return "; ".join(f"{name}: {said}" for name, said in {"right": sample["reference"], **sample["answers"]}.items())


def _at_this_size(model: Document, answer: Document) -> str:
    return f"{model['parameters']:,} parameters: {prompt_at_once(answer)}"


HOW_BOTH_WRITE = Part(
    "How both write",
    (
        Screen(
            "Both write one token at a time. A transformer looks back at all of the prompt through its cache, so "
            "that it can copy a name from it; a recurrent network has only its state, into which everything had to "
            "fit.",
            (TRAINED, Shown(BASELINE, only=("costs", "samples"))),
            (
                Fact(
                    "GPT works in parallel, LSTM in sequence",
                    "training and prefill are parallel; decoding is one token at a time in both (the recurrent "
                    "networks here are the faster ones because they are so much smaller)",
                    _one_by_one,
                ),
                Fact("", "what has to be copied from far back tells the two apart", _copied),
            ),
        ),
        Screen(
            "Tokens that are known can be read at once where none needs what came out of the one before: so it is in a "
            "transformer, whatever its size. A recurrent network needs the state that the token before left.",
            (Shown(f"inspect-layers {DECODER}", only=("model",)), WITHOUT_CACHE),
            (
                Fact(
                    "175B parameters enable parallelism",
                    "size does not; the architecture does: a small transformer reads all of a row at once, and a "
                    "recurrent network of any size one token after the other",
                    _at_this_size,
                ),
            ),
        ),
    ),
)
