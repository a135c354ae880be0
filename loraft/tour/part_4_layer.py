"""Part 4: what a layer is made of."""

from __future__ import annotations

from loraft.tour.screens import DECODER, ENCODER, Document, Fact, Part, Screen, Shown, bare_name


def _heads(*models: Document) -> str:
    return "; ".join(
        f"{bare_name(each)}: {each['num_attention_heads']} query, {each['num_key_value_heads']} key/value heads "
        f"({each['attention']})"
        for each in models
    )


def _sizes(*models: Document) -> str:
    return "; ".join(
        f"{bare_name(each)}: {each['feed_forward']['ratio']:.2f} times the hidden size, "
        f"{each['parameters_by_part']['feed_forward']:,} parameters against {each['parameters_by_part']['attention']:,}"
        for each in models
    )


def _norms(*models: Document) -> str:
    return "; ".join(
        f"{bare_name(each)}: {each['norms']['kind']} {each['norms']['place']}"
        + (", and a final one" if each["norms"]["final"] else "")
        for each in models
    )


def _kinds(*models: Document) -> str:
    return "; ".join(
        f"{bare_name(each)}: {each['feed_forward']['activation']}, "
        f"{'gated' if each['feed_forward']['gated'] else 'plain'}, {each['norms']['kind']}"
        for each in models
    )


def _paths(*models: Document) -> str:
    paths = ((bare_name(each), each["stacks"][0]) for each in models)
    return "; ".join(f"{name}: {stack['path']}, of a bare AutoModel {stack['bare_path']}" for name, stack in paths)


INSIDE_A_LAYER = Part(
    "Inside a layer",
    (
        Screen(
            "A layer has two sub-layers: attention, which moves information between tokens, and a feed-forward part, "
            "which works on each token alone. What each computes is added to the token's vector, the residual stream.",
            (Shown(f"inspect-layers {DECODER}", only=("model", "parameters", "modules")),),
            (
                Fact(
                    "a layer has one residual and one norm",
                    "two of each: before the sub-layer in GPT-2 and Llama, after it in BERT and the 2017 model; "
                    "pre-norm models have a final norm before the head",
                    _norms,
                ),
                Fact(
                    "AutoModel.from_pretrained(...).model.layers",
                    "AutoModel is the bare stack (.layers); .model.layers belongs to AutoModelForCausalLM; and "
                    "config.num_hidden_layers needs no weights",
                    _paths,
                ),
            ),
        ),
        Screen(
            "Models differ in details. These are looked at without their weights: the config of Llama-2 in two sizes "
            "is enough to count, beside the encoder that comes with loraft.",
            (
                Shown(f"inspect-layers {ENCODER}", only=("model",)),
                Shown("inspect-layers llama-2-7b", only=("model",)),
                Shown("inspect-layers llama-2-70b", only=("model",)),
            ),
            (
                Fact(
                    "a Q, K and V set for each head",
                    "in multi-head attention; grouped and multi-query attention share K and V",
                    _heads,
                ),
                Fact(
                    "the feed-forward part is 4 times larger than attention",
                    "its inner width is 4 times the hidden size (2.69 in Llama-2-7B); its parameters are about twice "
                    "attention's, and more where heads share K and V",
                    _sizes,
                ),
                Fact("GELU, layer norm", "Llama: gated SiLU with three matrices, RMSNorm", _kinds),
                Fact(
                    "a layer has one residual and one norm",
                    "two of each; BERT's come after the sub-layers, Llama's before them",
                    _norms,
                ),
            ),
        ),
    ),
)
