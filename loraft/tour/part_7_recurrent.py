"""Part 7: an LSTM, trained from scratch, beside a fine-tuned transformer."""

from __future__ import annotations

from loraft.tour.screens import Document, Fact, Part, Screen, Shown

TRAINED = Shown("train lora.yaml --overwrite")
BASELINE = "baseline lora.yaml --cell both"


def networks(report: Document) -> dict[str, Document]:
    """What stands beside one another in a baseline's report, by name."""
    return {each["name"]: each for each in report["networks"]}


def _maps(_: Document, report: Document) -> str:
    found = networks(report)
    sizes = "; ".join(
        f"{each['cell']}: d {each['embedding']}, h {each['hidden']}, {found[each['cell']]['parameters']:,} parameters "
        "with embedding and head"
        for each in report["training"]
    )
    return f"{sizes}; the tanh cell has one map, the LSTM four"


def _remembered(_: Document, report: Document) -> str:
    return "; ".join(
        f"{name}: {each['writing']['state_bytes']:,} bytes after {each['writing']['tokens']} tokens, "
        f"{each['writing']['bytes_a_token']:,.0f} more with each"
        for name, each in networks(report).items()
        if each["writing"]
    )


def _losses(_: Document, report: Document) -> str:
    return "loss on the held-out rows: " + ", ".join(
        f"{name} {each['figures']['loss']:.3f}" for name, each in networks(report).items()
    )


LSTM_AND_GPT = Part(
    "LSTM and GPT",
    (
        Screen(
            "A recurrent network reads one token after another and carries a state of fixed size along. An LSTM's "
            "state is a cell that is added to, with gates that say what is forgotten, written and shown. Here one is "
            "trained from scratch, beside a plain tanh network, on the rows that the transformer is fine-tuned on "
            "for four steps.",
            (TRAINED, Shown(BASELINE, only=("training", "costs", "quality"))),
            (
                Fact("LSTM: forget, input and output gate", "and the candidate; four maps, 4·h·(h + d) weights", _maps),
                Fact(
                    "few parameters but scales poorly with length",
                    "parameters do not depend on length; time is serial, state constant; attention costs O(T²) work "
                    "and the cache O(T) memory",
                    _remembered,
                ),
                Fact(
                    "",
                    "a fine-tuned model knows the language before it sees the first row; a network from scratch "
                    "learns it from these rows alone",
                    _losses,
                ),
            ),
        ),
    ),
)
