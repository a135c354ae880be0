"""Part 2: a decoder, an encoder, and both in one model."""

from __future__ import annotations

from loraft.tour.screens import DECODER, ENCODER, Document, Fact, Part, Screen, Shown, percent, spelt


def _vectors(answer: Document) -> str:
    trace = answer["trace"]
    read = f"{trace['encoder']['tokens']} tokens were read once and became as many vectors"
    looks = (
        ", ".join(f"{spelt(each['text'])} {percent(each['weight'])}" for each in step["attended"])
        for step in trace["steps"][:2]
    )
    return f"{read}; step 0 looked most at {', step 1 at '.join(looks)}"


def _same_answer(_: Document, answer: Document) -> str:
    same = answer["no_kv_cache"]["same_tokens"]
    if not same:
        return "the answers with and without the cache differ here, by rounding"
    return (
        "the same tokens with the cache as without: what is kept of a token stays right when others follow it, because "
        "no token looks at later ones"
    )


STACKS = Part(
    "Encoder and decoder",
    (
        Screen(
            "An encoder reads a whole text, each token looking at all others, and gives a vector for each. A decoder "
            "goes on with a text, each token looking only at itself and those before it; most chat models are "
            "decoders alone.",
            (
                Shown(f"generate {ENCODER} --prompt Hello", refused=True),
                Shown(f'generate {DECODER} --prompt "Translate to French: Good morning" --dtype float32 --no-kv-cache'),
            ),
            (
                Fact(
                    "GPT, BERT and LLaMA generate text",
                    "BERT is an encoder trained by filling masks; it does not generate token by token",
                    "refused: {0[problems][0][message]}".format,
                ),
                Fact(
                    "translation needs an encoder–decoder",
                    "decoder-only models translate too; one of 135M parameters does it badly",
                    lambda _, answer: f"a decoder answered: {answer['completion'].splitlines()[0]}",
                ),
                Fact(
                    "the decoder's self-attention is like the encoder's",
                    "it is causal; the encoder's is not",
                    _same_answer,
                ),
            ),
        ),
        Screen(
            "An encoder-decoder, such as T5, reads the source once with its encoder; each step of its decoder looks at "
            "the source's vectors anew (cross-attention). No such model comes with loraft: this one is tiny and its "
            "WEIGHTS ARE RANDOM, so that its words mean nothing, and what is computed when is as in a real one.",
            (Shown('generate random-t5 --prompt "The cat sat on the mat." --max-new-tokens 4 --trace'),),
            (
                Fact(
                    "the encoder produces a context vector",
                    "one vector a source token, attended anew at every step; one vector is the older recurrent design",
                    _vectors,
                ),
                Fact(
                    "translation needs an encoder–decoder",
                    "T5 and Marian begin from a start token, mBART and NLLB from a language token",
                    "the decoder was fed token {0[trace][steps][0][fed][0]} first, which its config names as "
                    "start".format,
                ),
            ),
        ),
    ),
)
