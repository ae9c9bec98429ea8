"""Tiny random models of every causal family that the installed transformers has.

A family's default configuration is shrunk by the names of its attributes, which most families share
(`SMALL`); what that leaves wrong is put right per family (`EXCEPTIONS`). Where a family has a window, an
attention bias, or another thing that changes who sees whom, it is built in several variants (`VARIANTS`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
WINDOW = 20
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

_LAYERS, _HEADS, _KV_HEADS, _WIDTH, _HEAD = 3, 4, 2, 32, 8
_NAMES = {
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    512: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions",
    _WIDTH: "hidden_size d_model n_embd embedding_size embedding_dim emb_dim word_embed_proj_dim input_embedding_size "
    "output_embedding_size attention_hidden_size hidden_size_global lru_width dim_model_base backbone_hidden_size",
    48: "intermediate_size ffn_dim d_inner decoder_ffn_dim encoder_ffn_dim dff dim_ff ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size expert_ffn_hidden_size "
    "shared_intermediate_size",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
    "moe_shared_expert_intermediate_size state_size mamba_d_state ssm_state_size chunk_size mamba_chunk_size "
    "indexer_budget "
    "q_lora_rank kv_lora_rank o_lora_rank hidden_size_per_layer_input laurel_rank gated_norm_rank ple_embed_dim",
    _LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks "
    "encoder_layers num_encoder_layers",
    1: "first_k_dense_replace num_dense_layers n_group topk_group num_expert_group "
    "interleave_moe_layer_step mamba_n_groups n_groups o_groups moe_layer_start_index moe_layer_interval "
    "num_nextn_predict_layers indexer_kv_heads max_window_layers hc_sinkhorn_iters zero_expert_num",
    _HEADS: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
    "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads index_n_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts time_step_rank mamba_dt_rank mamba_n_heads mamba_num_heads n_mamba_heads rotary_dim hc_mult "
    "qk_rope_head_dim mamba_d_head mamba_head_dim conv_kernel indexer_compress_ratio",
    _KV_HEADS: "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_k sliding_window_pattern _sliding_window_pattern no_rope_layer_interval "
    "indexer_n_heads "
    "global_attn_every_n_layers attn_layer_period attn_layer_offset expert_layer_period layer_group_size",
    _HEAD: "head_dim d_head dim_head d_kv kv_channels attention_head_size qk_nope_head_dim v_head_dim swa_head_dim "
    "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim global_head_dim query_pre_attn_scalar "
    "indexer_head_dim block_size local_attn_chunk_length lsh_attn_chunk_length d_rel",
    12: "qk_head_dim",
    WINDOW: "sliding_window sliding_window_size window_size local_attention attention_chunk_size attention_window_size",
}
SMALL = {name: size for size, names in _NAMES.items() for name in names.split()}
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id")

# Where the default is None, some families cannot be built without a number.
_EVEN_IF_NONE = (
    *("head_dim", "num_key_value_heads", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
    *("indexer_n_heads", "indexer_kv_heads", "indexer_head_dim", "indexer_budget", "indexer_compress_ratio"),
)
# A latent cache has as many KV heads as heads, and its head_dim is that of the rotary part alone.
_LATENT = {"num_key_value_heads": 4, "head_dim": 4}
_MAMBA = {"mamba_d_head": 16, "mamba_expand": 2}
_HYBRID = [LINEAR, FULL, LINEAR] if transformers.__version__ >= "5" else ["mamba", "attention", "mamba"]
_DBRX_WIDTH = {"hidden_size": 32} if transformers.__version__ >= "5" else {}  # transformers 4 takes d_model alone
_ZAMBA = {"attention_hidden_size": 64, "attention_head_dim": 16}

# What the shrinking by name leaves wrong: family -> arguments of its configuration.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": _HYBRID},
    "falcon_h1": {"mamba_d_head": 8, "mamba_d_ssm": 32},
    "mamba2": {"head_dim": 16},
    "dots1": {"n_shared_experts": 1},
    "zaya": {"num_experts_per_tok": 1},
    "jamba": {"attn_layer_offset": 1, "expert_layer_offset": 1, "use_mamba_kernels": False},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": [FULL, "conv", FULL]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": [SLIDING, FULL, FULL]},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
    },
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY, "enable_shape": False},
    "cohere_compass_text": {
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in (FULL, SLIDING)}
    },
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "xmod": {"default_language": "en_XX"},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # its cache rounds widths up to 64, its layers do not
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, **_DBRX_WIDTH},
    },
}


# The variant whose rotary table is another one from position 24 on.
TABLE_CHANGES = "longrope"
_LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]}

# What changes who sees whom, for every family whose configuration has the names: variant -> arguments.
VARIANTS: dict[str, dict[str, Any]] = {
    "windows": {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": [FULL, SLIDING, FULL]},
    "window first": {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL]},
    "window, all full": {"sliding_window": WINDOW, "layer_types": [FULL] * _LAYERS},
    "no window": {"sliding_window": None, "use_sliding_window": False, "layer_types": [FULL] * _LAYERS},
    "all full": {"layer_types": [FULL] * _LAYERS},
    "window in all": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "no rotary layer": {"no_rope_layers": [0] * _LAYERS},
    "rotary layers all": {"no_rope_layers": [1] * _LAYERS},
    "temperature": {"attn_temperature_tuning": True, "floor_scale": 8, "layer_types": [FULL] * _LAYERS},
    "attention only": {"attn_layer_period": 1, "attn_layer_offset": 0},
    TABLE_CHANGES: {"original_max_position_embeddings": 24, "rope_scaling": _LONG},
    "soft-capping": {"attn_logit_softcapping": 5.0},
    "encoder": {"is_decoder": False},
    "multi-head": {"multi_query": False, "num_kv_heads": _HEADS},
    "relative positions": {"position_embedding_type": "relative_key_query"},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
}
# Each of these, where there is one, is turned round on its own.
SWITCHES = (
    "alibi",
    "new_decoder_architecture",
    "parallel_attn",
    "qk_layernorm",
    "use_qk_norm",
    "use_parallel_residual",
    "attention_bias",
    "do_layer_norm_before",
    "add_attention_sink_bias",
)


class NotTinyError(ValueError):
    """The shrunk configuration still makes a large model."""


LARGEST = 6_000_000  # parameters


def families() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def configurations(family: str) -> Iterator[tuple[str, Any]]:
    """Every distinct variant of a family: its name, and its configuration or why there is none."""
    config = shrunk(family)
    yield "default", config
    seen = [config.to_dict()]
    names = set(vars(config)) | set(config.attribute_map)
    switched = {
        name: {name: not getattr(config, name)} for name in SWITCHES if isinstance(vars(config).get(name), bool)
    }
    for variant, changes in {**VARIANTS, **switched}.items():
        needed = next(iter(changes))
        if needed not in names:
            continue
        # transformers 5 takes rope_scaling and calls it rope_parameters
        ours = {name: value for name, value in changes.items() if name in {*names, "rope_scaling"}}
        with contextlib.suppress(Exception):  # what a family's configuration forbids is no variant of it
            config = shrunk(family, **ours)
            if config.to_dict() not in seen:
                seen.append(config.to_dict())
                yield variant, config
    if not {"sliding_window", "layer_types"} & (names | set(dir(config))):
        config = shrunk(family)
        config.sliding_window, config.layer_types = WINDOW, [SLIDING] * _LAYERS
        yield "window that nobody reads", config


def model_class(family: str) -> Any:
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])


def shrunk(family: str, **changes: Any) -> Any:
    """The configuration of a family with everything small."""
    kind = model_class(family).config_class
    decoder = {"is_decoder": True} if "is_decoder" in vars(kind()) else {}
    return _shrunk(kind, decoder | EXCEPTIONS.get(family, {}), changes)


def _shrunk(kind: Any, exceptions: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    default = kind()
    arguments: dict[str, Any] = {}
    for name, value in vars(default).items():
        if name in SMALL and (isinstance(value, int) or (value is None and name in _EVEN_IF_NONE)):
            arguments[name] = SMALL[name]
        elif name in _IDS and isinstance(value, int) and value >= VOCABULARY:
            arguments[name] = 0
    if "qk_rope_head_dim" in vars(default):
        arguments |= {name: size for name, size in _LATENT.items() if name in arguments}
    for name in kind.sub_configs:  # text, vision, audio: shrunk alike
        if (part := getattr(default, name, None)) is not None:
            arguments[name] = _shrunk(type(part), {}, {})
    arguments |= exceptions
    try:
        small = kind(**{**arguments, **changes})
    except (AttributeError, TypeError):  # some want their parts as dictionaries
        arguments |= {name: arguments[name].to_dict() for name in kind.sub_configs if name in arguments}
        small = kind(**{**arguments, **changes})
    if "layer_types" not in vars(default) or "layer_types" in {*exceptions, *changes}:
        return small
    if changes and _layer_types(small) != _layer_types(kind(**arguments)):
        return small  # a variant whose layers are its point
    types = list(dict.fromkeys(_layer_types(default)))
    if set(types) <= set(_layer_types(small)) or len(types) > _LAYERS:
        return small
    # Every type of layer that the default has, where its first few leave some out.
    return kind(**{**arguments, **changes, "layer_types": (types * _LAYERS)[:_LAYERS]})


def _layer_types(config: Any) -> list[str]:
    return getattr(config, "layer_types", None) or []


def built(family: str, config: Any, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model in evaluation mode, with weights large enough that every detail shows in the loss."""
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"
    if (size := _size(family, config)) > LARGEST:
        raise NotTinyError(f"{size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(family)._from_config(config, dtype=dtype)
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2:
                embeds = any(part in name for part in ("embed", "wte", "wpe"))
                torch.nn.init.normal_(parameter, std=0.5 if embeds else 1.5 * parameter.shape[-1] ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            elif "sink" in name:
                torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


def _size(family: str, config: Any) -> int:
    """Parameters of a model that is not made; 0 where its code wants their values."""
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        return sum(each.numel() for each in model_class(family)._from_config(config).parameters())
    return 0
