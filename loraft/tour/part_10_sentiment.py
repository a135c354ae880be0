"""Part 10: the same task for an LSTM and for a transformer: is a review positive or negative?"""

from __future__ import annotations

from loraft.tour.part_7_recurrent import networks
from loraft.tour.screens import Document, Fact, Part, Screen, Shown, percent


def _accuracy(_: Document, report: Document) -> str:
    found = ", ".join(f"{name} {percent(each['figures']['accuracy'])}" for name, each in networks(report).items())
    between = report["differences"]["lstm"]["accuracy"]
    return (
        f"right on {report['rows']} reviews in other words: {found}; the difference is {percent(between['low'])} to "
        f"{percent(between['high'])} with 95 % confidence"
    )


def _padded(_: Document, report: Document) -> str:
    read = {name: each["padded"] for name, each in networks(report).items()}
    losses = "; ".join(f"{name} {each['loss_alone']:.6f} and {each['loss_padded']:.6f}" for name, each in read.items())
    return f"loss of the shortest review, alone and with {read['lstm']['padding']} tokens of padding: {losses}"


def _read(_: Document, report: Document) -> str:
    return "; ".join(
        f"{name}: {each['parameters']:,} parameters, a row alone in {each['row_seconds']:.4f} s"
        for name, each in networks(report).items()
    )


def _likeliest(answer: Document) -> str:
    return f"{answer['prediction']}, {percent(answer['probabilities'][answer['prediction']])}"


SENTIMENT = Part(
    "Sentiment with an LSTM and with a transformer",
    (
        Screen(
            "A classifier makes one vector of a text and reads the class from it. Both learn from the same made-up "
            "reviews, such as 'The film was good.'; those that are held out use other words, such as 'superb', which "
            "the transformer has read in its pretraining and the LSTM never.",
            (
                Shown("train sentiment.yaml --overwrite"),
                Shown("baseline sentiment.yaml", only=("training", "costs", "quality", "samples")),
            ),
            (
                Fact(
                    "",
                    "a pretrained model knows words that no row of the task has; this is what fine-tuning begins from",
                    _accuracy,
                ),
                Fact(
                    "the last hidden state",
                    "of the last real token, never of padding; an encoder such as this one has a vector that has "
                    "looked at all tokens",
                    _padded,
                ),
                Fact("", "what is known beforehand is paid for with size and time", _read),
            ),
        ),
        Screen(
            "What was trained answers for any text: the share of each class, the likeliest first.",
            (Shown('predict sentiment-run --text "What a marvellous evening."'),),
            (Fact("", "a share is what the model says, and not how often it is right", _likeliest),),
        ),
    ),
)
