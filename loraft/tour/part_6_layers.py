"""Part 6: what layers do, and which of them are trained."""

from __future__ import annotations

from loraft.tour.screens import DECODER, Document, Fact, Part, Screen, Shown, percent, spelt


def _first_layers(answer: Document) -> str:
    found = (
        (step["taken"]["text"], next((each["layer"] for each in step["layers"] if each["rank_of_taken"] == 1), None))
        for step in answer["trace"]["steps"]
    )
    return "the first layer that would have said it: " + ", ".join(f"{spelt(text)} {layer}" for text, layer in found)


def _last_four(every: Document, last: Document) -> str:
    return "; ".join(
        f"{name}: {report['adapter']['trainable_parameters']:,} parameters, "
        f"activations {report['memory']['activations']:,} bytes predicted"
        for name, report in (("all layers", every), ("last:4", last))
    )


def _looks(found: Document) -> str:
    heads = [
        (f"{layer['index']}.{head['head']}", head)
        for layer in found["activations"]["layers"]
        for head in layer["heads"]
    ]
    first, most = max(heads, key=lambda each: each[1]["first_token"])
    even, widest = max(heads, key=lambda each: each[1]["entropy_share"])
    return (
        f"head {first} gives {percent(most['first_token'], 0)} of its weight to the first token; head {even} spreads "
        f"it most, with {percent(widest['entropy_share'], 0)} of the greatest possible entropy"
    )


LAYERS_AND_HEADS = Part(
    "Layers and heads",
    (
        Screen(
            "Each layer adds to the same vector, so that one can ask each: had you been the last, what would the model "
            "have said? This is the logit lens.",
            (
                Shown(
                    f'generate {DECODER} --prompt "What is the capital of France?" --max-new-tokens 6 --trace --layers',
                    only=("layers",),
                ),
            ),
            (
                Fact(
                    "early layers syntax, deep layers reasoning", "tendencies seen in probing; not a law", _first_layers
                ),
            ),
        ),
        Screen(
            "Which layers get an adapter is a choice. Below the first adapted layer nothing has to be kept for the "
            "backward pass, which is what adapting the last few saves.",
            (Shown("check lora.yaml", only=("memory",)), Shown("check lora.yaml lora.layers=last:4", only=("memory",))),
            (
                Fact(
                    "the last few layers are the usual choice",
                    "all layers are; last-N saves time and memory",
                    _last_four,
                ),
            ),
        ),
        Screen(
            "A layer's heads look at tokens of their own choice. Many rest at the first token, whatever it is: the "
            "weights of a head add up to one, so that they have to go somewhere.",
            (Shown(f'inspect-layers {DECODER} --activations "The capital of France is"', only=("attention",)),),
            (
                Fact(
                    "early layers syntax, deep layers reasoning",
                    "tendencies seen in probing; not a law: what a head looks at is seen by looking",
                    _looks,
                ),
            ),
        ),
    ),
)
