"""The model that is timed for real, in the precision that people run, and random ones that cost nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from knorm_core import load_model
from knorm_core.inputs.models import model_identity
from knorm_core.latency.records import Record
from knorm_core.plugin.inputs import LoadedModel
from knorm_core.plugin.unread import READERS
from suites.families import VOCABULARY, tiny_model

for _option in ("--knorm-model", "--knorm-dtype", "--knorm-device"):
    READERS[_option] += ("timed_model",)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A random Llama of three layers in float32."""
    return tiny_model("llama", torch.float32)


@pytest.fixture(scope="session")
def sliding_model() -> Callable[..., Any]:
    """``sliding_model(layers)``: a random Qwen3 of three layers, of which ``layers`` have a window of 16 tokens."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def build(*layers: int) -> Any:
        config = Qwen3Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=VOCABULARY,
            use_sliding_window=True,
            sliding_window=16,
            layer_types=["sliding_attention" if layer in layers else "full_attention" for layer in range(3)],
        )
        return Qwen3ForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def timed_model(request: pytest.FixtureRequest) -> Any:
    """The model of --knorm-model in float32, or in --knorm-dtype where that was chosen."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        pytest.skip("timers share the machine with the other workers: run the latency suite without -n")
    option = request.config.getoption
    model, _ = load_model(option("knorm_model"), timed_dtype(request.config), option("knorm_device"))
    return model


@pytest.fixture
def record_latency(record_table: Callable[..., None], request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record_latency(record, model=...)``: a table of what was measured, under the name of the timed model."""
    name = request.config.getoption("knorm_model")
    loaded = LoadedModel(name, None, None, model_identity(name))

    def record(table: Record, model: str = "") -> None:
        source = {"model": model or f"{loaded.slug} sha256:{loaded.identity.weights}", **table.made_from}
        record_table(f"{model or loaded.slug}/latency/{table.what}", table.rows, key=table.key, made_from=source)

    return record


@pytest.fixture(scope="session")
def random_prompt(timed_model: Any) -> Callable[[int], torch.Tensor]:
    """Random token ids: what a dense model's forward pass takes does not depend on them."""

    def ids(length: int) -> torch.Tensor:
        vocabulary = timed_model.get_input_embeddings().num_embeddings
        return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))

    return ids


def timed_dtype(config: pytest.Config) -> torch.dtype:
    """float64 is the suite's default because goldens need it; nobody serves a model in it."""
    name = config.getoption("knorm_dtype")
    return torch.float32 if name == "float64" else getattr(torch, name)
