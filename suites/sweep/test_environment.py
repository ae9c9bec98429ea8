"""What decides numbers besides a cell is part of what a result is found by: torch's switches, threads, the code."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
import torch

import knorm_core
from knorm_core.sweeps.environment import code_files, environment
from knorm_core.sweeps.run import run_cells
from knorm_core.sweeps.store import Store

pytestmark = pytest.mark.fast


@contextlib.contextmanager
def low_matmul_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "switched", [low_matmul_precision, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["matmul", "autocast"]
)
def test_what_was_computed_under_another_switch_of_torch_is_not_looked_up(switched, cells_of, tiny, tmp_path):
    store = Store(tmp_path / "results.sqlite")
    list(run_cells(cells_of([{"keep_ratio": 0.5}]), store=store))
    with switched():
        [outcome] = run_cells(cells_of([{"keep_ratio": 0.5}]), store=store)
        assert outcome.stored is None
    [outcome] = run_cells(cells_of([{"keep_ratio": 0.5}]), store=store)
    assert outcome.stored is not None


def test_threads_are_part_of_the_environment():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert environment("cpu")["threads"] == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("switch", ["function mode", "hook", "variable", "backend", "denormals"])
def test_a_switch_of_the_process_is_part_of_the_environment(switch, monkeypatch):
    before = environment("cpu")
    with contextlib.ExitStack() as left:
        if switch == "function mode":
            left.enter_context(torch.overrides.BaseTorchFunctionMode())
        elif switch == "hook":
            left.callback(torch.nn.modules.module.register_module_forward_pre_hook(print).remove)
        elif switch == "variable":
            monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
        elif switch == "backend":
            products = torch.backends.mkldnn.matmul if hasattr(torch.backends.mkldnn, "matmul") else None
            if not hasattr(products, "fp32_precision"):
                pytest.skip("this torch has one switch for all backends")
            left.callback(setattr, products, "fp32_precision", products.fp32_precision)
            products.fp32_precision = "bf16"
        else:
            if not torch.set_flush_denormal(True):
                pytest.skip("this processor does not flush denormal numbers")
            left.callback(torch.set_flush_denormal, False)
        assert environment("cpu") != before
    monkeypatch.undo()
    assert environment("cpu") == before


def imported_by(path):
    """The sources of this package that a source imports, anywhere in it."""
    root = Path(knorm_core.__file__).parent
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("knorm_core"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                place = root.joinpath(*name.split(".")[1:])
                if place != root:
                    yield from filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py"))


def test_every_source_that_a_result_may_depend_on_is_part_of_the_code_version():
    root = Path(knorm_core.__file__).parent
    reached, waiting = set(), [root / "sweeps" / "cells.py", *(root / "experiments").glob("*.py")]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += imported_by(path)
    assert {"evaluator.py", "onepass.py", "stepwise.py", "tova.py", "models.py"} <= {path.name for path in reached}
    # A sweep is the way to a result and an interval a form for it: neither decides a number that is stored.
    assert {path.parent.name for path in reached - set(code_files())} == {"sweeps", "results"}
