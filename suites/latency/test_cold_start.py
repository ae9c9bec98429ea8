"""First calls of fresh processes: paired within a process, told apart, and judged by the ledger alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from knorm_core.latency import MeasurementError, measure_cold_start
from knorm_core.latency import cold_process as cold_process_module
from knorm_core.latency.cold_start import ColdStart, summarise
from knorm_core.latency.environment import Environment
from knorm_core.latency.tables import cold_start_tables

pytestmark = pytest.mark.fast

RATIOS = [1.0, 0.9, 0.1]
SETTING = {
    "model": "made-up",
    "dtype": "float32",
    "prompt_tokens": 256,
    "prune_after": 256,
    "new_tokens": 8,
    "repeats": 3,
    "seed": 0,
}
MACHINE = {field.name: 0.0 if "float" in str(field.type) else "x" for field in dataclasses.fields(Environment)}


def report(cold: float, *, warm: float = 1.0, honest: float = 1.02) -> dict[str, Any]:
    """The answer of a process whose first call takes ``cold`` seconds, and a warm one ``warm``."""
    rounds = [warm * drift for drift in (1.0, 1.5, 0.9)]
    compressed = [honest * seconds for seconds in rounds]
    return {
        "import_seconds": 4.0,
        "load_seconds": 1.0,
        "modules_imported_by_first_call": 3,
        "cold": {"ttft_seconds": [cold, honest * warm, honest * warm], "tokens_per_second": [10.0, 9.0, 9.5]},
        "warm": {
            "ttft_seconds": [rounds, compressed, compressed],
            "tokens_per_second": [[10.0] * 3, [9.0] * 3, [9.5] * 3],
        },
        "environment": MACHINE,
    }


def parts(kernels: float = 0.2, allocation: float = 0.01, forward: float = 0.1) -> dict[str, Any]:
    def first(extra: float, warm: float) -> dict[str, float]:
        return {"first": warm + extra, "warm": warm}

    return {
        "import_seconds": 4.0,
        "load_seconds": 1.0,
        "kernels": first(kernels, 0.1),
        "allocation": first(allocation, 0.001),
        "forward": first(forward, 1.0),
    }


def cold_start(*reports: dict[str, Any]) -> ColdStart:
    return summarise(reports, [parts()] * len(reports), keep_ratios=RATIOS, **SETTING)


def test_cold_and_warm_are_paired_within_a_process():
    cold = cold_start(report(1.1), report(22.0, warm=20.0))
    assert cold.first_call.ratio.samples == pytest.approx((1.1, 1.1))
    assert cold.first_call_with_start.ratio.samples == pytest.approx((6.1, 27 / 20))
    assert cold.rows[1].warm_ttft.ratio.samples == pytest.approx((1.02, 1.02))
    assert cold.rows[1].cold_ttft.ratio.samples == pytest.approx((1.02 / 1.1, 1.02 / 1.1))
    assert cold.rows[2].warm_throughput.ratio.value == pytest.approx(0.95)
    assert [part.name for part in cold.parts if part.inside] == [
        "lazy imports and kernels",
        "first allocation",
        "first forward",
    ]
    assert [part.seconds.ratio.value for part in cold.parts] == pytest.approx([4.0, 1.0, 0.2, 0.01, 0.1])


def test_a_process_that_fails_is_recorded_and_not_counted(monkeypatch):
    answers = iter([RuntimeError("killed"), "ok", "ok"])

    def run(request: dict[str, Any]) -> dict[str, Any]:
        answer = next(answers, "ok")
        if isinstance(answer, Exception):
            raise answer
        return report(1.1) if request["kind"] == "report" else parts()

    monkeypatch.setattr(cold_process_module, "run_in_fresh_process", run)
    monkeypatch.setattr("knorm_core.latency.cold_start.model_folder", lambda name: None)
    cold = measure_cold_start("made-up", keep_ratios=[0.9, 0.1], processes=3)
    assert len(cold.first_call.samples) == 2
    [failure] = cold.failures
    assert failure.error == "RuntimeError: killed"
    assert any("FAILED and not counted: 1 rounds" in note for note in cold_start_tables(cold)[0].notes)
    monkeypatch.setattr(cold_process_module, "run_in_fresh_process", lambda request: 1 / 0)
    with pytest.raises(MeasurementError, match="ZeroDivisionError"):
        measure_cold_start("made-up", processes=2)


def test_the_end_of_a_failed_process_s_standard_error_is_shown(monkeypatch):
    monkeypatch.setattr(cold_process_module, "PROGRAM", "raise KeyError('no kind')")
    with pytest.raises(RuntimeError, match=r"status 1: (.|\n)*KeyError: 'no kind'"):
        cold_process_module.run_in_fresh_process({})


def test_the_tables_have_these_columns():
    cold = cold_start(report(1.1), report(1.0), report(1.2))
    first, ways = cold_start_tables(cold)
    assert list(first.rows[0]) == ["what", "in the timer", "s", "warm calls"]
    assert [row["what"] for row in first.rows] == [
        "whole first call",
        "imports before the call",
        "loading the model",
        "extra: lazy imports and kernels",
        "extra: first allocation",
        "extra: first forward",
        "first call, imports and loading",
    ]
    assert list(ways.rows[0]) == ["keep", "TTFT cold way", "TTFT honest", "tokens/s cold way", "tokens/s honest"]
    # imports and loading take 5 s, a first call 1.1 s, a warm one 1 s: 1 / 6.1 - 1
    assert any("a cold start would make −84 %." in note for note in ways.notes)
    assert str(cold).startswith(first.title)
