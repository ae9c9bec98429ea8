"""What is timed is the model's own generation, whatever its family; what cannot be evaluated is not timed."""

from __future__ import annotations

import pytest
import torch
import transformers

from knorm_core import UnsupportedModelError
from knorm_core.latency import measure_latency
from suites.families import VOCABULARY, random_ids, tiny_model

pytestmark = pytest.mark.fast

TOKENS, PADDING = 5, 1
GOOD = {"prune_after": 40, "new_tokens": TOKENS, "repeats": 1, "warmup": 0}


def roberta():
    """It counts positions from what follows the padding's, and has 60 in all."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=60, is_decoder=True, pad_token_id=PADDING, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("made", [roberta, lambda: tiny_model("falcon")], ids=["roberta", "falcon"])
def test_at_keep_1_each_token_is_the_likeliest_of_the_models_own_forward(made):
    # Without a cache: transformers' generate counts RoBERTa's positions from 0.
    model, ids = made(), random_ids(45)
    ids = ids[ids != PADDING]
    fed = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    measure_latency(model, ids, keep_ratios=[1.0], **GOOD)
    hook.remove()
    text = ids.tolist()
    for token in fed[-TOKENS:]:
        with torch.inference_mode():
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        assert token == text[-1:]
    assert len(set(text[-TOKENS:])) > 1  # the same each time would say little of positions


def test_positions_that_start_late_leave_fewer_of_them():
    ids = torch.full((54,), 7)  # with 5 more tokens 59 of 60 positions, of which the first 2 are not for tokens
    with pytest.raises(ValueError, match="with new_tokens=5 59, but the model has 60 positions, the first 2"):
        measure_latency(roberta(), ids, keep_ratios=[0.5], **GOOD)
    assert measure_latency(roberta(), ids[:53], keep_ratios=[0.5], **GOOD).row(0.5).evictions == 1


def test_a_model_that_cannot_be_evaluated_is_not_timed_either():
    # An eviction changes the distances that ALiBi reads off a key's place in the cache.
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM reads the distance of a key off its place"):
        measure_latency(model, random_ids(45), keep_ratios=[0.5], **GOOD)
