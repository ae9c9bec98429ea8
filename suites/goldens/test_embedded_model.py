"""The embedded model on real prose, small enough for every commit: pinned, and held against oracles."""

from __future__ import annotations

import contextlib
from importlib.metadata import version

import pytest
import torch
from torch.nn.functional import cross_entropy

from knorm_core import evaluate, evaluate_table, perplexity
from knorm_core.plugin.inputs import made_from

pytestmark = [pytest.mark.golden, pytest.mark.xdist_group("embedded model")]

RATIOS = (1.0, 0.5, 0.1)
MODES = ("absolute", "cache")
SAMPLES = 2


@pytest.fixture(scope="session")
def samples(embedded_model, texts_of):
    return texts_of(embedded_model, "embedded-short", None, SAMPLES)


@pytest.fixture(scope="session")
def tables(embedded_model, samples):
    return [
        evaluate_table(embedded_model.model, text.input_ids, keep_ratios=RATIOS, positions=MODES) for text in samples
    ]


def check_baseline(golden, tables, samples, loaded):
    """Hold tables of the samples against the baseline of every commit."""
    rows = [
        {
            "positions": mode,
            "keep_ratio": ratio,
            "ppl": perplexity([table[mode, ratio] for table in tables]),
            "scored_tokens": sum(len(table[mode, ratio].nll) for table in tables),
            "mean_cache": sum(table[mode, ratio].mean_cache for table in tables) / SAMPLES,
        }
        for mode in MODES
        for ratio in RATIOS
    ]
    golden.check(
        "smollm2-135m/embedded-short/fast",
        rows,
        key=("positions", "keep_ratio"),
        made_from=made_from(loaded, samples, prune_after=256, samples=SAMPLES),
    )


@pytest.mark.fast
def test_short_samples_match_the_baseline(tables, samples, embedded_model, golden):
    if version("transformers").startswith("4."):
        pytest.skip("transformers 4 makes another tokenizer of the embedded GGUF; baselines are of transformers 5's")
    check_baseline(golden, tables, samples, embedded_model)


@pytest.mark.fast
def test_keep_ratio_one_is_the_models_own_loss(tables, samples, embedded_model):
    # The oracle of the table's first row: transformers' own forward, none of our code in it.
    ids = samples[0].input_ids
    row = tables[0]["absolute", 1.0]
    with torch.inference_mode():
        logits = embedded_model.model(ids[None, :-1], use_cache=False).logits[0]
    plain = cross_entropy(logits, ids[1:], reduction="none")[row.effective_prune_after :]
    torch.testing.assert_close(row.nll, plain, rtol=0, atol=1e-5)
    assert row.ppl == pytest.approx(float(plain.mean().exp()), rel=1e-6)


# The oracle of the other rows: the definition, token by token on a real cache. A stretch of a text in the
# full suite (5 s), the whole text with the other goldens (20 s each).
STRETCHES = [
    pytest.param("cache", 64, marks=pytest.mark.full),
    ("cache", None),
    ("absolute", None),
]


@pytest.mark.parametrize(("mode", "tokens"), STRETCHES)
def test_one_pass_equals_stepwise_on_a_real_text(mode, tokens, samples, embedded_model):
    arguments = {"input_ids": samples[1].input_ids[:tokens], "keep_ratio": 0.1, "positions": mode}
    onepass = evaluate(embedded_model.model, **arguments)
    stepwise = evaluate(embedded_model.model, **arguments, method="stepwise")
    assert float((onepass.nll - stepwise.nll).abs().max()) < 1e-5
    assert onepass.ppl == pytest.approx(stepwise.ppl, rel=1e-6)
    assert onepass.evictions == stepwise.evictions


@pytest.mark.parametrize(
    "direction",
    [
        pytest.param(1, id="up", marks=pytest.mark.full),
        pytest.param(-1, id="down", marks=pytest.mark.full),
        pytest.param(0, id="mixed", marks=pytest.mark.fast),
    ],
)
def test_one_ulp_of_the_rotary_tables_moves_nothing(direction, tables, samples, embedded_model):
    # Other libraries' sine and cosine may differ in the last bit; who survives must not depend on it.
    with ulp_noise(embedded_model.model.model.rotary_emb, direction):
        noisy = evaluate(embedded_model.model, samples[0].input_ids, keep_ratio=0.5)
    exact = tables[0]["absolute", 0.5]
    assert not torch.equal(noisy.nll, exact.nll)  # the noise arrived
    assert noisy.ppl == pytest.approx(exact.ppl, rel=1e-6)


@contextlib.contextmanager
def ulp_noise(rotary, direction):
    """Move every entry of the float32 rotary tables by one ulp, up, down or (0) either way at random."""
    generator = torch.Generator().manual_seed(0)

    def perturb(_module, _arguments, tables):
        moved = []
        for table in tables:
            single = table.float()
            signs = torch.randint(2, single.shape, generator=generator) * 2 - 1 if direction == 0 else direction
            moved.append(torch.nextafter(single, torch.inf * torch.ones_like(single) * signs).to(table.dtype))
        return tuple(moved)

    handle = rotary.register_forward_hook(perturb)
    try:
        yield
    finally:
        handle.remove()
