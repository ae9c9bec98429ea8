"""Tiny random models, one per family that the suite promises, and some that one pass cannot serve."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from packaging.version import Version

VOCABULARY = 97

_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    **_IDS,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_OPENAI = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, **_IDS}
FULL, SLIDING = "full_attention", "sliding_attention"
# Scores of these weights reach some 10, which a cap of 5 bends; a window of 50 lies within most texts of the tests.
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 50}
_GPT_OSS = {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}

# name -> (transformers' name of the configuration, its arguments)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "rotary_pct": 0.25}),  # a quarter of each head rotates, as in Pythia
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "phi3": ("Phi3Config", _GROUPED),
    "gpt2": ("GPT2Config", _OPENAI),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "attn_logit_softcapping": 5.0, "layer_types": [FULL, SLIDING, FULL]}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "layer_types": [SLIDING, SLIDING, FULL]}),
}
PROMISED = tuple(FAMILIES)

FAMILIES |= {
    f"qwen3_sliding_{window}": (
        "Qwen3Config",
        {
            **_GROUPED,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": window,
            "layer_types": [FULL, SLIDING, FULL],
        },
    )
    for window in (20, 41, 60, 89)
}

# What one pass cannot serve and a real cache can, and the reason that is given.
SLOW = {
    "falcon": "does not go through transformers' AttentionInterface",
    "gpt_oss": "layer 0 attends with s_aux",  # attention sinks
    "phi3_longrope": "its rotary table changes with the furthest position of a text: where that is 68",
}
if Version(transformers.__version__) < Version("5.24"):  # from there on one pass serves it
    SLOW["gptj"] = "does not go through transformers' AttentionInterface"
FAMILIES |= {
    "falcon": ("FalconConfig", {**_COMMON, "alibi": False}),
    "gptj": ("GPTJConfig", {**_OPENAI, "rotary_dim": 4}),
    "gpt_oss": ("GptOssConfig", {**_GPT_OSS, "sliding_window": 20, "layer_types": [SLIDING, FULL, FULL]}),
    "phi3_longrope": (
        "Phi3Config",
        {
            **_GROUPED,
            "original_max_position_embeddings": 48,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]},
        },
    ),
    # Local layers see the last `window_size` places of the cache, whatever tokens are there.
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "window_size": 60,
            "attention_types": [[["global", "local"], 1]],
            **_IDS,
        },
    ),
}


@functools.lru_cache(maxsize=32)
def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model in evaluation mode, with weights large enough that every detail shows in the loss."""
    import transformers

    config_name, arguments = FAMILIES[family]
    config = getattr(transformers, config_name)(**arguments)
    # transformers 4 lets a model be made with SDPA that then drops its soft-capping; 5 makes it eager.
    attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64, **attention)
        for name, parameter in model.named_parameters():
            # transformers initialises for training; these make attention peaked, so that who is evicted
            # and at which position a token is fed change the loss by far more than rounding does.
            if parameter.ndim >= 2:
                embeds = any(part in name for part in ("embed", "wte", "wpe"))
                torch.nn.init.normal_(parameter, std=0.5 if embeds else 1.5 * parameter.shape[1] ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                # With all of these at 1, models that normalise keys (Qwen3) give every key the same norm.
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            elif "sinks" in name:
                torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


def random_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids (length,), int64; tokens repeat, so key norms tie."""
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
