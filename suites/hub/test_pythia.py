"""``tox -e pythia``, as somebody with a network runs it for the first time: its own command, against the stand-in."""

from __future__ import annotations

import configparser
import re
import shlex

import pytest

from knorm_core.claims import judge, load_claims
from knorm_core.results.file import read_results
from suites.hub import processes
from suites.hub.content import PYTHIA

pytestmark = [pytest.mark.hub, pytest.mark.xdist_group("pythia")]


def command(posargs: str = "", root: str = "") -> list[str]:
    """The arguments that tox.ini gives to pytest; ``root`` is where it would leave results."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(processes.ROOT / "tox.ini")
    line = tox["testenv:pythia"]["commands"].replace("\\\n", " ")
    name, *arguments = shlex.split(line.replace("{posargs}", posargs).replace("{tox_root}", root))
    assert name == "pytest"
    return arguments


def test_the_command_is_the_reports_experiment():
    arguments = " ".join(command())
    assert "--knorm-model EleutherAI/pythia-70m-deduped" in arguments
    assert "--knorm-text wikitext-short,wikitext-articles,pg19" in arguments
    assert "--knorm-max-eval-tokens 1024" in arguments


@pytest.fixture
def experiment(environment, tmp_path):
    """Run the command, with baselines in a folder of its own."""
    plugins = ["-p", "suites.hub.stand_in_pins", "-p", "no:cacheprovider"]
    root = ["--rootdir", str(tmp_path), "-c", str(processes.ROOT / "pyproject.toml")]

    def run(posargs=""):
        return processes.python("-m", "pytest", *plugins, *root, *command(posargs, str(tmp_path)), **environment)

    return run


def test_the_first_run_compares_nothing_the_second_makes_baselines_and_the_third_compares(hub, experiment, tmp_path):
    first = experiment()
    assert first.returncode == 0, first.stdout + first.stderr
    for text_set in ("wikitext-short", "wikitext-articles", "pg19"):
        for positions in ("absolute", "cache"):
            settings = f"{positions} positions, low_norm, EleutherAI-pythia-70m-deduped in float64"
            title = rf"^{text_set} \(\d texts\), {settings}"
            assert re.search(title, first.stdout, re.MULTILINE)
    assert first.stdout.count("The report claims 1.0: 75.03, 0.9: 84.55 (+13%), 0.5: 89.41 (+19%)") == 4
    assert first.stdout.count("The report claims 1.0: 39.72, 0.9: 57.48 (+45%), 0.5: 50.59 (+27%)") == 2
    assert first.stdout.count("No baseline yet: these numbers were compared with nothing.") == 6
    # Six tables and their paired ratios.
    skipped = re.findall(r"SKIPPED \[(\d+)\] .*no baseline yet, so nothing was compared", first.stdout)
    assert sum(map(int, skipped)) == 12
    assert not list(tmp_path.glob("baselines/**/*.csv"))
    # All of them were measured, on fewer texts than a verdict takes.
    assert {verdict.verdict for verdict in verdicts_on_cells(tmp_path)} == {"open"}

    hub.stop()  # from here on without a network
    second = experiment("--force-regen")
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(list(tmp_path.glob("baselines/EleutherAI-pythia-70m-deduped/*/ppl-*.csv"))) == 12

    third = experiment()
    assert third.returncode == 0, third.stdout + third.stderr
    assert "o baseline" not in third.stdout
    assert passed(third) == passed(first) + 12
    assert tables(third) == tables(first)


def verdicts_on_cells(root):
    """The report's perplexities are about this model, so that they are judged by it and by no stand-in."""
    claims = load_claims(processes.ROOT / "baselines" / "claims")
    verdicts = judge(claims, read_results(root / "results"))
    return [verdict for verdict in verdicts if verdict.where.endswith("PPL") and "-ppl-" in verdict.id]


def passed(process):
    return int(re.search(r"(\d+) passed", process.stdout)[1])


def tables(process):
    return [line for line in process.stdout.splitlines() if line.startswith("│")]


def test_without_a_network_and_without_a_cache_the_failure_is_one_sentence(hub, experiment):
    hub.stop()
    process = experiment("-n 0")
    assert process.returncode == 1
    sentence = f"model '{PYTHIA}' cannot be had, the hub at {hub.url} cannot be reached, Connection refused"
    assert sentence in process.stdout
    assert "Traceback" not in process.stdout
