"""What transformers 5.24 and peft 0.21 themselves cannot do: the step that fails, and why."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from transformers import __version__

TABLES_OF = "5.24"
of_this_version = pytest.mark.skipif(
    not __version__.startswith(f"{TABLES_OF}."), reason=f"the tables are of transformers {TABLES_OF}"
)
"""What is tested of the tables of the zoo, which other versions have other types for."""

TIMM = "its vision tower is a model of timm, which is not installed"
IMAGES = "its loss needs an image with every text"
TEXT_PART = "transformers finds no class for the config of its text part, which is what is saved"
NOT_READ_BACK = "it does not read back the adapter that it saves, for transformers renames what it is on; loraft does"
ASSISTANT = "it reads the hidden states of a main model, and has none of its own"
AUDIO_CONFIG = "transformers gives its class for text the config of the whole, which has no `dropout`"

NOT_ALONE: Mapping[tuple[str, str], tuple[str, str]] = {
    ("causal", "blt"): ("generate", "transformers makes no cache for it: its config has no `num_hidden_layers`"),
    ("causal", "emu3"): ("load", TEXT_PART),
    ("causal", "gemma3n"): ("build", TIMM),
    ("causal", "gemma4_assistant"): ("forward", ASSISTANT),
    ("causal", "gemma4_unified_assistant"): ("forward", ASSISTANT),
    ("causal", "git"): ("forward", IMAGES),
    ("causal", "inkling2_loop_text"): ("peft", NOT_READ_BACK),
    ("causal", "inkling2_text"): ("peft", NOT_READ_BACK),
    ("causal", "laguna"): ("peft", NOT_READ_BACK),
    ("causal", "mllama"): ("load", TEXT_PART),
    ("causal", "musicgen"): ("build", AUDIO_CONFIG),
    ("causal", "musicgen_melody"): ("build", AUDIO_CONFIG),
    ("causal", "reformer"): ("peft", "its reversible layers give adapters on a frozen base no gradient"),
    ("seq2seq", "fsmt"): ("forward", "it makes the decoder's input of the source where labels alone are given"),
    ("seq2seq", "nemo_speechlm"): ("load", "transformers saves tensors that it does not read back"),
    ("seq2seq", "voxtral_realtime"): ("forward", "its loss needs sound with every text"),
    ("classification", "ibert"): ("peft", "its linear modules are of its own class, which peft does not adapt"),
    ("classification", "layoutlmv2"): ("build", "it needs detectron2, which is not installed"),
    ("classification", "reformer"): ("peft", "its reversible layers give adapters on a frozen base no gradient"),
    ("multimodal", "blip"): ("forward", IMAGES),
    ("multimodal", "blip-2"): ("forward", IMAGES),
    ("multimodal", "deepseek_ocr2"): ("peft", NOT_READ_BACK),
    ("multimodal", "diffusion_gemma"): ("forward", "a diffusion model: transformers has no loss of it"),
    ("multimodal", "evolla"): ("build", "transformers' mapping names a class that it does not find"),
    ("multimodal", "fast_vlm"): ("build", TIMM),
    ("multimodal", "granite4_vision"): ("build", "its image part is made for widths of 64 and more"),
    ("multimodal", "idefics"): ("forward", IMAGES),
    ("multimodal", "inkling2"): ("peft", NOT_READ_BACK),
    ("multimodal", "inkling2_loop"): ("peft", NOT_READ_BACK),
    ("multimodal", "instructblip"): ("forward", IMAGES),
    ("multimodal", "instructblipvideo"): ("forward", IMAGES),
    ("multimodal", "kosmos-2"): ("forward", IMAGES),
    ("multimodal", "mistral_large4"): ("peft", NOT_READ_BACK),
    ("multimodal", "perception_lm"): ("build", TIMM),
    ("multimodal", "pi0"): ("forward", "its loss is that of a robot's movements"),
    ("multimodal", "pix2struct"): ("forward", IMAGES),
    ("multimodal", "pp_formulanet"): ("forward", IMAGES),
    ("multimodal", "shieldgemma2"): ("load", "transformers saves it under names that it does not read back"),
    ("multimodal", "udop"): ("forward", "its loss needs the place of every word on a page"),
    ("multimodal", "unlimited_ocr"): ("peft", NOT_READ_BACK),
    ("multimodal", "vision-encoder-decoder"): ("forward", IMAGES),
}


def trained_alone(group: str, model_type: str) -> bool:
    """Whether transformers and peft train it, though perhaps it does not write: what loraft is measured by."""
    return NOT_ALONE.get((group, model_type), ("generate",))[0] == "generate"
