"""The contract as pytest sees it: the options in a foreign folder, and the decorators."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from knorm_core import l2_compress
from knorm_core.contract import (
    COMPRESSOR_CHECKS,
    EVALUATOR_CHECKS,
    POLICY_CHECKS,
    as_compressor,
    parametrize_with_checks,
    searching,
)
from knorm_core.contract.decorators import distinct_names
from knorm_core.contract.evaluators import knorm_onepass
from knorm_core.contract.plugin import named

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

BACKWARDS = """
from knorm_core import l2_compress

def backwards(past_key_values, keep_ratio, prune_after, skip_layers):
    return [(k.flip(2), v.flip(2)) for k, v in l2_compress(past_key_values, keep_ratio, prune_after, skip_layers)]
"""
DECORATED = """
from knorm_core import l2_compress
from knorm_core.contract import parametrize_with_checks
from mine import backwards

@parametrize_with_checks(
    backwards,
    xfail={"keeps_temporal_order": "newest first (a reason)"},
    skip={"nan_is_refused": "no such keys here"},
)
def test_backwards(compressor, check):
    check(compressor)

@parametrize_with_checks(l2_compress, xfail={"keeps_temporal_order": "was mended"})
def test_mended(compressor, check):
    check(compressor)
"""


# In a process of its own: pytester within this one would import transformers twice.
def run_pytest(folder: Path, *arguments: str) -> Any:
    (folder / "mine.py").write_text(BACKWARDS)
    (folder / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--model')\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.full  # a pytest run of its own
def test_options_and_decorators_work_in_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "mypkg.py").write_text("from knorm_core import l2_compress as my_compress\n")
    (tmp_path / "myeval.py").write_text("from knorm_core.contract.evaluators import knorm_onepass as my_losses\n")
    (tmp_path / "test_decorated.py").write_text(DECORATED)
    for number, example in enumerate(example for example in EXAMPLES if "def test_" in example):
        (tmp_path / f"test_example_{number}.py").write_text(example)
    run = run_pytest(
        tmp_path,
        *("-rA", "-k", "order or nan or subset or plain or ranked", "--pyargs", "knorm_core.contract", "."),
        *("--knorm-compressor=mine:backwards", "--knorm-examples=10"),
        "--knorm-evaluator=knorm_core.contract.evaluators:knorm_onepass",
    )
    summary = run.stdout.splitlines()

    def outcomes(word: str, test: str) -> list[str]:
        return [line for line in summary if line.startswith(word) and test in line]

    assert "Traceback" not in run.stdout + run.stderr
    assert "backwards does not keep the promise 'keeps_temporal_order'" in run.stdout
    assert outcomes("FAILED", "test_compressor[backwards-keeps_temporal_order]")
    assert outcomes("PASSED", "test_compressor[backwards-smaller_ratio_keeps_a_subset]")
    assert outcomes("PASSED", "test_evaluator[knorm_onepass-ratio_one_is_the_plain_loss]")
    assert "newest first (a reason)" in outcomes("XFAIL", "test_backwards[backwards-keeps_temporal_order]")[0]
    assert any("no such keys here" in line for line in summary)
    assert outcomes("PASSED", "test_backwards[backwards-smaller_ratio_keeps_a_subset]")
    # An expected failure that passes is a failure, so that the list of them stays true.
    assert outcomes("FAILED", "test_mended[l2_compress-keeps_temporal_order]")
    assert not outcomes("FAILED", "test_example") + outcomes("ERROR", "")
    assert outcomes("PASSED", "test_example_0.py::test_contract[l2_compress-keeps_temporal_order]")
    assert outcomes("PASSED", "test_example_1.py::test_contract[knorm_onepass-ratio_one_is_the_plain_loss]")
    assert outcomes("PASSED", "test_example_2.py::test_contract[LargeValues-scores_can_be_ranked]")


@pytest.mark.fast
@pytest.mark.parametrize(
    "example",
    [example for example in EXAMPLES if "def test_" not in example],
    ids=lambda example: re.findall(r"import (.*)", example)[0],
)
def test_the_other_examples_of_the_readme_run(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mypkg", SimpleNamespace(my_compress=l2_compress))
    monkeypatch.setitem(sys.modules, "myeval", SimpleNamespace(my_losses=knorm_onepass))
    with searching(examples=5):
        exec(example, {})


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine", "give MODULE:NAME"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("math:no_such_name", "math has no no_such_name"),
        ("math:pi", "3.14.* is not callable"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_usage_error(name: str, says: str) -> None:
    config: Any = SimpleNamespace(getoption=lambda option: [name], invocation_params=SimpleNamespace(dir=Path.cwd()))
    with pytest.raises(pytest.UsageError, match=f"--knorm-compressor={name}: .*{says}"):
        named(config, "--knorm-compressor")


@pytest.mark.full
def test_a_wrong_name_ends_the_run_in_its_sentence_and_no_traceback(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--pyargs", "knorm_core.contract", "--knorm-compressor=mine:no_such_name")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --knorm-compressor=mine:no_such_name: mine has no no_such_name" in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "INTERNALERROR" not in run.stdout + run.stderr


@pytest.mark.fast
def test_two_compressors_of_one_name_have_ids_that_tell_them_apart() -> None:
    def made_in(module: str) -> Any:
        def compress(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
            return l2_compress(past, keep_ratio, prune_after, skip_layers)

        compress.__module__, compress.__qualname__ = module, "compress"
        return as_compressor(compress)

    subjects = [made_in("mine"), made_in("theirs"), made_in("theirs"), as_compressor(l2_compress)]
    assert distinct_names(subjects) == ["mine.compress", "theirs.compress#1", "theirs.compress#2", "l2_compress"]
    mark = parametrize_with_checks(*subjects)
    ids = [parameter.id for parameter in mark.args[1]]
    assert len(set(ids)) == len(ids)
    assert "theirs.compress#2-keeps_temporal_order" in ids


@pytest.mark.fast
def test_expecting_a_check_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="xfail names 'no_such_check'"):
        parametrize_with_checks(l2_compress, xfail={"no_such_check": "a typing error"})


@pytest.mark.fast
def test_the_readme_lists_every_check_and_its_promise() -> None:
    table = [f"| `{check.name}` | {check.promise} |" for check in COMPRESSOR_CHECKS + EVALUATOR_CHECKS + POLICY_CHECKS]
    missing = [row for row in table if row not in README]
    assert not missing, "\n".join(missing)


@pytest.mark.fast
def test_the_plugin_does_not_import_torch() -> None:
    code = "import sys, knorm_core.contract.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
