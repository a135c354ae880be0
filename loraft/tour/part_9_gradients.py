"""Part 9: how far gradients reach, over time and over depth."""

from __future__ import annotations

from loraft.tour.part_7_recurrent import BASELINE, TRAINED
from loraft.tour.screens import Document, Fact, Part, Screen, Shown


def _reach(_: Document, report: Document) -> str:
    return "; ".join(
        f"{each['name']}: {each['relative'][-1]:.1e} of the last token's {len(each['relative'])} tokens back"
        for each in report["gradient"]["networks"]
    )


def _by_the_token(_: Document, report: Document) -> str:
    return "times a token, by the line through all distances: " + ", ".join(
        f"{each['name']} {each['factor']:.3f}" for each in report["gradient"]["networks"]
    )


def _by_depth(report: Document) -> str:
    return "; ".join(
        f"residual stream of the {each['stack']}, layer {each['first']} against layer {each['last']}: a ratio of "
        f"{each['ratio']:.3g}, {each['course']}"
        for each in report["gradients"]["courses"]
        if each["ratio"] is not None
    )


VANISHING_GRADIENTS = Part(
    "Vanishing gradients",
    (
        Screen(
            "A network learns from a token only as far as the gradient of the loss comes back to it. In a recurrent "
            "network it passes every step between, and is multiplied at each; in a transformer attention is one step, "
            "whatever the distance. It is measured, trained and untrained, on held-out rows.",
            (TRAINED, Shown(BASELINE, only=("gradient",))),
            (
                Fact(
                    "early layers barely update",
                    "in recurrent networks early time steps (weights are shared); gradients also explode, hence "
                    "clipping",
                    _reach,
                ),
                Fact(
                    "the gates save the gradient",
                    "the additive cell path with a forget gate near one does; an LSTM has its gates and may fall all "
                    "the same, if it has learned to forget",
                    _by_the_token,
                ),
            ),
        ),
        Screen(
            "In a transformer gradients pass depth instead of time. Each layer adds to the residual stream, so that "
            "there is a way back around every one.",
            (Shown("inspect-layers --gradients lora.yaml"),),
            (
                Fact(
                    "transformers have no vanishing gradients",
                    "mitigated by residuals, norms and a constant path in time; deep post-norm models still need "
                    "warm-up",
                    _by_depth,
                ),
            ),
        ),
    ),
)
