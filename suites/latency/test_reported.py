"""How the report timed, beside timers that treat all rows alike: which of its numbers come out, and when."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from knorm_core.latency.records import Record
from knorm_core.latency.reported import (
    COMPRESSED,
    GENERATE,
    LOOPS,
    PLAIN,
    PUBLISHED,
    PUBLISHED_TIMED,
    REBUILT,
    loop_rows,
    measure_loops,
    published_throughput,
)
from knorm_core.results.families import RANDOM_PYTHIA
from suites.families import random_ids, tiny_model

# Prompt and generated tokens: a prompt that costs a decoding step, as a short one does on a GPU; one that costs more
# than that on a CPU; and the report's two data sets.
GENERATIONS = ((1, 100), (8, 100), (115, 50), (230, 100))


@pytest.mark.fast
@pytest.mark.parametrize("table", PUBLISHED, ids=[table.document for table in PUBLISHED])
def test_published_baselines_have_a_tenth_of_the_tokens_for_their_first(table):
    # A mean of products is not the product of means, so that averages over two data sets part by some per cent.
    assert table.tokens_times_guess == pytest.approx(table.tokens / 10, rel=0.08)


@pytest.mark.fast
@pytest.mark.parametrize("table", PUBLISHED_TIMED, ids=[table.document for table in PUBLISHED_TIMED])
def test_published_rows_whose_first_token_was_timed_have_about_one(table):
    assert 0.4 < table.tokens_times_guess < 1.1


@pytest.mark.fast
def test_the_published_fall_of_throughput_is_there_before_anything_is_evicted():
    loop, firing = (row["change"] for row in published_throughput())
    assert loop == pytest.approx(-17, abs=0.5)
    assert abs(firing) < 1


@pytest.fixture
def costed():
    """A tiny model and a clock that its forwards drive: a prompt takes 3 seconds, a further token 1."""
    model, seconds = tiny_model("gpt_neox", torch.float32), [0.0]

    def passes(module, arguments, options, output):
        fed = options.get("input_ids", arguments[0] if arguments else None)
        seconds[0] += 3.0 if fed.shape[1] > 1 else 1.0

    hook = model.register_forward_hook(passes, with_kwargs=True)
    yield model, lambda: seconds[0]
    hook.remove()


@pytest.mark.fast
def test_a_guessed_baseline_shortens_the_first_token_and_an_honest_one_does_not(costed):
    model, clock = costed
    rows = measure_loops(model, random_ids(60), new_tokens=38, prune_after=40, repeats=2, warmup=0, clock=clock)
    by_loop = {row["loop"]: row for row in loop_rows(rows)}
    for loop in (PLAIN, REBUILT, COMPRESSED):
        assert by_loop[loop]["ttft_seconds_ratio"] == 1
        # generate takes 3 + 37 seconds, so that a tenth of it is 4
        assert by_loop[loop]["guessed_ttft_seconds_ratio"] == pytest.approx(3 / 4)
        assert by_loop[loop]["tokens_per_second_ratio"] == 1
    assert list(by_loop) == list(LOOPS)


@pytest.mark.fast
def test_all_loops_generate_with_the_same_number_of_forwards(costed):
    model, clock = costed
    begin = clock()
    measure_loops(model, random_ids(20), new_tokens=5, prune_after=8, repeats=1, warmup=0, clock=clock)
    assert clock() - begin == 3 + 4 * (3 + 4)  # once for the first token of generate, then four generations


def pythia_shaped():
    """A random GPT-NeoX of Pythia-70M's shape: what a forward takes does not depend on its weights."""
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048,
        rotary_pct=0.25, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


@pytest.mark.latency
@pytest.mark.parametrize("shape", ["timed model", "Pythia-70M's shape"])
def test_the_reports_timers_beside_honest_ones(shape, timed_model, show_table, record_latency):
    model = timed_model if shape == "timed model" else pythia_shaped().to(timed_model.device)
    prompt = torch.randint(49000, (GENERATIONS[-1][0],), generator=torch.Generator().manual_seed(0))
    table = []
    for prompt_tokens, new_tokens in GENERATIONS:
        ids = prompt[:prompt_tokens].to(timed_model.device)
        table += loop_rows(measure_loops(model, ids, new_tokens=new_tokens, prune_after=64, repeats=7))
    show_table(
        f"how the report timed, {shape}",
        [
            {
                "prompt": row["prompt_tokens"],
                "generated": row["new_tokens"],
                "loop": row["loop"],
                "TTFT (s)": row["ttft_seconds"],
                "× plain loop": row["ttft_seconds_ratio"],
                "× a tenth of the whole": row["guessed_ttft_seconds_ratio"],
                "tokens/s": row["tokens_per_second"],
                "× generate": row["tokens_per_second_ratio"],
                "× the loop before": row["step_tokens_per_second_ratio"],
            }
            for row in table
        ],
        "A tenth of the whole is the report's baseline: a first token is 90 % below it where its prompt costs a "
        "decoding step; on a CPU a prompt of 115 tokens costs many, and is above it.",
    )
    what, name = ("reported-timers", "") if shape == "timed model" else ("reported-timers-pythia-shape", RANDOM_PYTHIA)
    key = ("loop", "prompt_tokens", "new_tokens")
    record = Record(what, key, table, {"settings": {"prune_after": 64, "repeats": 7, "keep_ratio": 0.5}})
    record_latency(record, model=name)
    cells = {(row["loop"], row["prompt_tokens"]): row for row in table}
    short = GENERATIONS[0][0]
    for loop in (PLAIN, REBUILT, COMPRESSED):
        # A first token that costs a step is a tenth of a tenth of a hundred of them.
        assert 0.05 < cells[loop, short]["guessed_ttft_seconds_ratio"] < 0.2
    for prompt_tokens, _ in GENERATIONS:
        assert cells[COMPRESSED, prompt_tokens]["ttft_seconds_ratio"] > 0.5
    assert cells[GENERATE, short]["tokens_per_second_ratio"] == 1
