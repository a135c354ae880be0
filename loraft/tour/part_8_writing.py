"""Part 8: how a recurrent network and a transformer write."""

from __future__ import annotations

from loraft.tour.part_7_recurrent import BASELINE, TRAINED, networks
from loraft.tour.screens import Document, Fact, Part, Screen, Shown


def _one_by_one(_: Document, report: Document) -> str:
    return "; ".join(
        f"{name}: read {each['tokens_per_second']:,.0f} tokens/s, wrote {each['writing']['tokens']} in "
        f"{each['writing']['seconds']:.2f} s"
        for name, each in networks(report).items()
        if each["writing"]
    )


def _copied(_: Document, report: Document) -> str:
    sample = report["samples"][0]
    return f"right: {sample['reference']} " + " ".join(f"{name}: {said}" for name, said in sample["answers"].items())


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
                Fact(
                    "175B parameters enable parallelism",
                    "size does not; the architecture does: a small transformer reads all of a row at once, and a "
                    "recurrent network of any size one token after the other",
                ),
                Fact("", "what has to be copied from far back tells the two apart", _copied),
            ),
        ),
    ),
)
