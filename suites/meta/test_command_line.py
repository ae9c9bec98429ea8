"""Options of the plugin: with a space as with =, from any folder; refused where no conftest names the plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest

from knorm_core.contract.command_line import FLAGS, joined
from knorm_core.inputs.models import DTYPES

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("pytester")]
pytest_plugins = ["pytester"]

SAYS = """
    def test_it(pytestconfig):
        print("rootdir", pytestconfig.rootpath.name, "dir", pytestconfig.getoption("knorm_text_dir"))
"""


@pytest.fixture
def repository(pytester, monkeypatch):
    """A repository with a test in a folder, and a folder of texts outside of it; the current folder is the first."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    folder = pytester.mkdir("repository")
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-config -p no:cacheprovider -s\n")
    (folder / "conftest.py").write_text('pytest_plugins = ["knorm_core.plugin"]\n')
    (folder / "tests" / "test_it.py").write_text("\n".join(line[4:] for line in SAYS.splitlines()))
    pytester.mkdir("a mirror")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("form", ["space", "="])
@pytest.mark.parametrize("folder", [".", "tests"])
@pytest.mark.parametrize("argument", [[], ["-v"]])
def test_a_folder_as_value_moves_no_rootdir_with_a_space_as_with_an_equals_sign(
    form, folder, argument, repository, pytester, monkeypatch
):
    monkeypatch.chdir(repository / folder)
    mirror = str(repository.parent / "a mirror")
    given = ["--knorm-text-dir", mirror] if form == "space" else [f"--knorm-text-dir={mirror}"]
    result = pytester.runpytest_inprocess(*given, *argument)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*rootdir repository dir {mirror}*"])


def test_the_environments_options_may_have_a_space_too(repository, pytester, monkeypatch):
    mirror = repository.parent / "a mirror"
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--knorm-text-dir '{mirror}'")
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines([f"*rootdir repository dir {mirror}*"])


def test_the_exit_status_is_that_of_the_run(repository, pytester):
    (repository / "tests" / "test_it.py").write_text("def test_it(): raise SystemError\n")
    assert pytester.runpytest_inprocess("--knorm-text-dir", "tests").ret == pytest.ExitCode.TESTS_FAILED
    assert pytester.runpytest_inprocess("--knorm-text-dir", "tests", "--knorm-dtype", "x").ret == 4


def test_what_follows_a_flag_is_left_alone():
    for arguments in (["--knorm-explore", "there"], ["-k", "there"], ["--knorm-x=1", "there"], ["--knorm-x", "-v"]):
        assert joined(arguments) == arguments
    assert joined(["--knorm-report", "there", "there"]) == ["--knorm-report=there", "there"]


def test_every_option_without_a_value_is_known_as_one(pytestconfig):
    group = pytestconfig._parser.getgroup("knorm")
    assert len(group.options) > 15
    attributes = {option.names()[0]: option.attrs() for option in group.options}
    # What was given to add_argument, or in later releases of pytest what argparse made of it.
    without = {
        name for name, given in attributes.items() if given.get("action") == "store_true" or given.get("nargs") == 0
    }
    assert without == set(FLAGS)


def test_outside_a_repository_that_names_the_plugin_its_options_are_refused(repository, pytester):
    (repository / "conftest.py").unlink()
    for option in ("--knorm-report=out", "--knorm-model=nonsense/none", "--knorm-baselines=x"):
        result = pytester.runpytest_inprocess(option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*unrecognized arguments: {option}*"])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--knorm-model=nonsense", "unknown model 'nonsense'"),
        ("--knorm-text=nonsense", "unknown text 'nonsense'"),
        ("--knorm-device=nonsense", "device='nonsense' cannot be used here"),
        ("--knorm-dtype=int8", "invalid choice: 'int8'"),
        ("--knorm-positions=nonsense", "unknown position mode 'nonsense': choose from absolute, cache, rerotated"),
        ("--knorm-keep-ratios=2", "keep ratio 2.0 is outside (0, 1]"),
        ("--knorm-store=nonsense", "'nonsense' is neither off nor the name of a file"),
        ("--knorm-compressor=broken:f", "--knorm-compressor=broken:f: cannot import broken (SyntaxError:"),
        ("--knorm-evaluator=math:pi", "--knorm-evaluator=math:pi: 3.14"),
        ("--regen-all", "--regen-all would write baselines one by one: use --force-regen"),
        ("--snapshot-update", "--snapshot-update would write baselines one by one"),
        ("--snapshot-update-new-only", "--snapshot-update-new-only would write baselines one by one"),
    ],
)
def test_a_senseless_value_is_refused_in_a_sentence_before_anything_runs(option, sentence, repository, pytester):
    (repository / "broken.py").write_text("def f(:\n")
    result = pytester.runpytest_inprocess(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    too_old = option == "--snapshot-update-new-only" and "unrecognized arguments" in text  # syrupy 4 has no such option
    assert sentence in text or too_old
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text


def test_the_precisions_are_those_of_load_model(pytestconfig):
    group = pytestconfig._parser.getgroup("knorm")
    [dtype] = [option for option in group.options if option.names() == ["--knorm-dtype"]]
    assert dtype.attrs()["choices"] is DTYPES


def test_what_every_pytest_run_loads_is_light():
    program = "import sys, knorm_core.contract.plugin; print(sorted({'torch', 'numpy', 'rich'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
