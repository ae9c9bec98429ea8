"""Results to make pages from: the baselines of this repository, as a run would have recorded them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from knorm_core.results import Baseline, Cell, Number, Results, Run, StandIn, Table, Test, Verdict

ROOT = Path(__file__).parents[2] / "baselines"


def recorded(rtol: float = 1e-6) -> Results:
    """Every table of ``baselines/`` as one run's, all the same as their baselines but for noise in one cell."""
    tables = [*read_tables()]
    noise = Cell("0.9", "ppl", 52.563161754593004, 52.56316176)
    tables = [
        Table(**{**vars(table), "baseline": Baseline("same", rtol, 0.0, [noise] if index == 0 else [])})
        for index, table in enumerate(tables)
    ]
    run = Run(
        "a1",
        "2026-01-01T09:00:00+00:00",
        785.0,
        "pytest -m repro -n 2 --dist loadgroup -v --knorm-report results",
        0,
        {"knorm_model": "smollm2-135m", "knorm_keep_ratios": [1.0, 0.9, 0.5, 0.1], "knorm_text_dir": None},
        {"knorm": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "python": "3.11.7"},
        {"platform": "Linux-6.1", "processor": "AMD EPYC", "cores": 2, "workers": 2, "device": "cpu"},
    )
    tests = [Test(f"suites/reproduction/test_reproduction.py::test_{n}", "passed", 1.0, run="a1") for n in range(40)]
    tests += [Test("suites/x.py::test_skipped", "skipped", 0.0, "Skipped: wikitext needs a local mirror", "a1")] * 3
    return Results([run], tables, tests, sample_verdicts())


def sample_verdicts():
    base = dict(
        source="report",
        where="table, keep 0.9, Wikitext PPL",
        setting="prune_after 256, 1,024 tokens",
        about="EleutherAI/pythia-70m",
        tolerance="5 %",
    )
    out = []
    for col, vals in {
        "wikitext": {1.0: 75.03, 0.9: 84.55, 0.5: 89.41, 0.1: 161.37},
        "pg19": {1.0: 39.72, 0.9: 57.48, 0.5: 50.59, 0.1: 51.73},
    }.items():
        for k, v in vals.items():
            out.append(
                Verdict(
                    id=f"report-{col}-ppl-{k}",
                    claim=f"At keep {k} the perplexity on {col} is {v}.",
                    expected=str(v),
                    verdict="not testable here",
                    why="EleutherAI/pythia-70m was not run.",
                    needs="tox -e pythia with a network",
                    stand_in=StandIn(
                        "smollm2-135m",
                        "refuted",
                        "On smollm2-135m, embedded-short/ppl-absolute: +12 % [+5 %, +19 %], claimed +13 %; not under position drift (+208 %).",
                        [Number("embedded-short/ppl-absolute, keep 0.9", 1.12, 1.05, 1.19)],
                        ["smollm2-135m/embedded-short/ppl-absolute"],
                    ),
                    **base,
                )
            )
    base["about"] = "any model"
    out.append(
        Verdict(
            id="r2",
            claim="prune_after=512 with max_eval_tokens=512 never fires.",
            expected="no eviction",
            verdict="reproduced",
            why="On smollm2-135m, the cache tops out at 511 of 512.",
            tables=["smollm2-135m/embedded-short/ppl-absolute"],
            **base,
        )
    )
    out.append(
        Verdict(
            id="r3",
            claim="The time to first token falls by 88 % at keep 0.9.",
            expected="−88 %",
            verdict="refuted",
            why="On smollm2-135m, +1 % [−1, +3] with honest timers, claimed −88 %.",
            numbers=[Number("honest ratio", 1.01, 0.99, 1.03)],
            **base,
        )
    )
    out.append(
        Verdict(
            id="r4",
            claim="On PG-19 keep 0.9 costs more than keep 0.1.",
            expected="falls as keep falls",
            verdict="explained",
            why="On smollm2-135m, not with true positions; but it comes out under position drift.",
            tables=["smollm2-135m/pg19/ppl-cache", "smollm2-135m/pg19/ppl-absolute"],
            **base,
        )
    )
    base["source"] = "paper"
    out.append(
        Verdict(
            id="p1",
            claim="A low L2 norm of a key usually leads to a high attention score during decoding.",
            expected="50 % of the heads at least",
            verdict="reproduced",
            why="On smollm2-135m, negative in 91 % of heads.",
            tables=["smollm2-135m/embedded-articles/norm-attention"],
            **base,
        )
    )
    out.append(
        Verdict(
            id="p2",
            claim="The KV cache can be reduced by 90 % in passkey retrieval without losing accuracy.",
            expected="100 % of what is found uncompressed",
            verdict="refuted",
            why="On smollm2-135m, 0 of 10 answered.",
            tables=["smollm2-135m/retrieval/passkey-256"],
            **base,
        )
    )
    return out


def read_tables() -> Iterator[Table]:
    """The golden files with the columns of their keys taken apart again."""
    for path in sorted(ROOT.glob("*/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = [*csv.reader(file)]
        key = head[0].split(" ")
        rows = [dict(zip(key, _labels(line[0], len(key)), strict=True)) for line in lines]
        for row, line in zip(rows, lines, strict=True):
            row |= {column: _value(cell) for column, cell in zip(head[1:], line[1:], strict=True)}
        source = yaml.safe_load(path.with_suffix(".yml").read_text(encoding="utf-8"))
        yield Table(str(path.relative_to(ROOT).with_suffix("")), key, rows, source, run="a1")


def _labels(label: str, count: int) -> Iterable[Any]:
    words = re.findall(r"\([^)]*\)|\S+", label)
    return map(_value, [*words[: count - 1], " ".join(words[count - 1 :])])


def _value(text: str) -> Any:
    try:
        return float(text) if re.search(r"[.en]", text) else int(text)
    except ValueError:
        return text
