"""Small random models on which the faults of an evaluation show.

Their weights are large: at the usual initialisation attention is flat and tokens are all alike, so that
a wrong position or a lost key hardly moves the loss. Here each moves it by a tenth of a nat or more.
They are float64, cost milliseconds to build, and are built afresh at every call, so that an evaluator
that spoils its model spoils no other check.
"""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 61


def llama() -> Any:
    """Two layers, grouped-query attention (4 heads, 2 KV heads), rotary embedding of the whole head."""
    return _large_weights(_llama_class()(_llama_config()))


def gpt_neox() -> Any:
    """Three layers, rotary embedding of a quarter of each head, as in Pythia."""
    return _gpt_neox(dropout=0.0)


def gpt_neox_training() -> Any:
    """The same weights with dropout of one half, in training mode."""
    return _gpt_neox(dropout=0.5).train()


def llama_deaf_to_positions() -> Any:
    """The Llama of `llama`, except that it takes ``position_ids`` and ignores them, as BLOOM and MPT do."""

    class DeafLlamaForCausalLM(_llama_class()):  # type: ignore[misc]
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    return _large_weights(DeafLlamaForCausalLM(_llama_config()))


def text(length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 (length,)."""
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def _llama_class() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM


def _llama_config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )


def _gpt_neox(dropout: float) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        rotary_pct=0.25,
        max_position_embeddings=512,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    return _large_weights(GPTNeoXForCausalLM(config))


def _large_weights(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 1.0 if "embed" in name else 0.35
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
    return model.double().eval()
