"""What loraft does not yet do of what transformers and peft do: the cells that fail, and why."""

from __future__ import annotations

from collections.abc import Mapping

NOT_YET: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("causal", "cpmant"): {
        "check": "it reads what comes after a token too, unless a context of its own says otherwise"
    },
    ("classification", "canine"): {"check": "it reads characters, and its config has no `vocab_size`"},
    ("classification", "squeezebert"): {"check": "its projections are convolutions: no list of linear layers is found"},
}
PLAIN: frozenset[tuple[str, str]] = frozenset(
    {
        ("causal", "bert"),
        ("causal", "big_bird"),
        ("causal", "camembert"),
        ("causal", "data2vec-text"),
        ("causal", "electra"),
        ("causal", "ernie"),
        ("causal", "hyperclovax"),
        ("causal", "inkling_text"),
        ("causal", "llama4"),
        ("causal", "llama4_text"),
        ("causal", "megatron-bert"),
        ("causal", "modernbert-decoder"),
        ("causal", "prophetnet"),
        ("causal", "rembert"),
        ("causal", "roberta"),
        ("causal", "roberta-prelayernorm"),
        ("causal", "roc_bert"),
        ("causal", "roformer"),
        ("causal", "xlm-roberta"),
        ("causal", "xlm-roberta-xl"),
        ("causal", "xmod"),
        ("seq2seq", "encoder-decoder"),
        ("seq2seq", "prophetnet"),
        ("multimodal", "florence2"),
        ("multimodal", "hyperclovax_vision_v2"),
        ("multimodal", "inkling_mm_model"),
        ("multimodal", "kosmos-2.5"),
        ("multimodal", "muse_glimmer"),
        ("multimodal", "muse_spark"),
        ("multimodal", "nemotron_h_omni"),
        ("multimodal", "unlimited_ocr"),
    }
)
"""The types that are trained on the plain path: their loss is computed from the model's own logits."""
