"""What single model types need besides the rules of `tiny_configs.py`."""

from __future__ import annotations

from typing import Any

from tests.tiny import VOCABULARY

NEEDED: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
}
"""The arguments without which a type's config class makes no config at all."""


def sections(*of_head: int) -> dict[str, Any]:
    """Rotary positions in three parts: time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(of_head)}}


LINEAR_THEN_FULL = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
SAME_HEADS = {"num_key_value_heads": 4}
TINY_VQ = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_embeddings": 64}
KEPT_IN_FOUR = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
SHARED_ATTENTION = {
    "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
}  # fmt: skip

OF_TYPE: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 280, "audio_token_offset": 300},
    "apertus1p5_vision_tokenizer": {"codebook_size": 20},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 32, "encoder_hash_byte_group_size": [3, 4]},
    "blt_local_decoder": {"head_dim": 8, "hidden_size_global": 64},
    "blt_local_encoder": {"hidden_size_global": 64},
    "blt_patcher": {"head_dim": 8},
    "blt_global_transformer": {"hidden_size": 64, "head_dim": 16},
    "canine": {"num_hash_buckets": 64, "local_transformer_stride": 8, "bos_token_id": 256, "eos_token_id": 257},
    "chameleon": {"vocabulary_map": {"<image>": 319}},
    "chameleon_vqgan": TINY_VQ,
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_ocr2_text": EXPERTS | {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v2": EXPERTS,
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1,
             "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "dots1": EXPERTS | {"first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_text": {"head_dim": 40},
    "emu3": {"vocabulary_map": {"<image>": 319}},
    "emu3_vqgan": TINY_VQ,
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "ernie4_5_vl_moe_text": sections(1, 1, 2) | {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 3},
    "esmc": SAME_HEADS | {"head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "funnel": {"block_sizes": [1, 1]},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gemma3n_text": KEPT_IN_FOUR | {"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0]},
    "glm5_next_text": SAME_HEADS | {"head_dim": 0, "index_kpool": 4},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [0], "downsample_rate": "1/2"},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_vl_vision": {"max_image_size": 32, "min_image_size": 32},
    "granitemoehybrid": LINEAR_THEN_FULL,
    "helium": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus_vqgan": TINY_VQ,
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 16},
    "markuplm": {"tag_pad_id": 15, "subs_pad_id": 15, "max_depth": 4},
    "mobilebert": {"normalization_type": "layer_norm"},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "molmo2_vision": SAME_HEADS,
    "nemotron": SAME_HEADS,
    "perceiver": {"num_self_attends_per_block": 1, "num_latents": 8},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
                       "indexer_compress_ratio": 4},
    "muse_spark_audio": {"num_hidden_layers": 2, "patch_sizes": [16, 6], "hidden_sizes": [32] * 2, "depths": [1] * 2},
    "qwen2_vl_text": sections(2, 1, 1),
    "qwen2_5_vl_text": sections(2, 1, 1),
    "paddleocr_vl_text": sections(4, 2, 2),
    "hunyuan_vl_text": sections(2, 1, 1),
        "qwen2_5_omni_text": sections(2, 1, 1),
    "glm46v_text": sections(2, 1, 1),
    "glm4v_text": sections(2, 1, 1),
    "glm4v_moe_text": sections(1, 1, 0),
    "glm_ocr_text": sections(2, 1, 1),
    "glmga_text": sections(1, 1, 0),
    "qwen2_5_omni_thinker": {"vision_start_token_id": 301},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 301},
    "radio": {"max_img_size": 32, "video_temporal_patch_size": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "attention_head_size": 8, "num_buckets": 4},
    "step3p5": {"sliding_window": 8},
    "xlnet": {"d_head": 8},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 8, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "wavtokenizer_encoder": {"codebook_size": 20},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": SHARED_ATTENTION | {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": SHARED_ATTENTION | {"hybrid_layer_ids": [1, 3], "attention_hidden_size": 64, "num_key_value_heads": 4,
                                  "num_query_groups": 4},
}  # fmt: skip
"""The arguments of a config, by its own model type, wherever it stands."""

OF_MODEL: dict[tuple[str, str], dict[str, Any]] = {
    ("encoder-decoder", "seq2seq"): {"decoder_start_token_id": 2},  # it masks padding, so that none begins
    ("t5gemma", "seq2seq"): {"decoder_start_token_id": 2},  # in training it begins with the beginning of text
    ("mbart", "seq2seq"): {"decoder_start_token_id": 2},  # where no language is named it begins with the end of text
    ("xlm", "causal"): {"causal": True},  # else it looks at what is to come
    ("xlnet", "causal"): {"attn_type": "uni"},
    ("reformer", "causal"): {"is_decoder": True},
}
"""The arguments that one of a type's models needs and another has not."""
