"""Tiny random models, one per family that the suite promises."""

from __future__ import annotations

import functools
from typing import Any

import torch

VOCABULARY = 97

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

# name -> (transformers' name of the configuration, its arguments)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "rotary_pct": 0.25}),  # a quarter of each head rotates, as in Pythia
    "llama": ("LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "qwen3_sliding": (
        "Qwen3Config",
        {
            **_GROUPED,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 20,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
}


@functools.lru_cache(maxsize=16)
def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model in evaluation mode, with weights large enough that every detail shows in the loss."""
    import transformers

    config_name, arguments = FAMILIES[family]
    config = getattr(transformers, config_name)(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")
        for name, parameter in model.named_parameters():
            # transformers initialises for training; these make attention peaked, so that who is evicted
            # and at which position a token is fed change the loss by far more than rounding does.
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                # With all of these at 1, models that normalise keys (Qwen3) give every key the same norm.
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.to(dtype).eval()


def random_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids (length,), int64; tokens repeat, so key norms tie."""
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
