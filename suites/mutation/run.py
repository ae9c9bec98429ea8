"""Run mutmut over the pure parts of knorm_core, and hold the survivors against the list of equivalents.

``python suites/mutation/run.py FOLDER`` copies what is needed into FOLDER/work, mutates there, and ends
with the score; the exit status is 0 if at least 90 % of the mutants die and every survivor is one that
``equivalents.toml`` explains. ``tox -e mutation`` is that command.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAST = 0.90
MEMORY = 6 << 30  # bytes of address space: a mutant that appends for ever is to die of it, and nobody else
SURVIVED = (0, 5, 33, None)  # mutmut's exit codes: the tests passed, or none of them runs the function
TIMEOUT = (24, -24, 36, 152, 255)

# module -> the functions that are pure; "*" is all of them
PURE = {
    "counts": ["*"],
    "norms": ["*"],
    "selection": ["*"],
    "policy": ["key_scores", "checked_scores", "checked_state", "check_no_nan"],
    "methods.replay": ["replayed_deaths", "recomputed_attention", "_blocks", "_causal"],
    "cache": ["take", "read_layers", "with_layers", "check_skip_layers", "_check_pair"],
    "compressor": ["*"],
    "methods.attention": ["*"],
    "methods.rotation": ["rotate"],
    "methods.deaths": ["*"],
}
# The shortest list of tests that is meant to notice.
TESTS = [
    "test_counts.py",
    "test_compressor.py",
    "test_deaths.py",
    "test_exact_answers.py",
    "test_policies.py",
    "test_replay.py",
]

CONFIGURATION = f"""
[tool.mutmut]
source_paths = ["knorm_core"]
only_mutate = {[f"knorm_core/{module.replace('.', '/')}.py" for module in PURE]!r}
also_copy = ["suites", "conftest.py"]
pytest_add_cli_args_test_selection = {[f"suites/core/{name}" for name in TESTS]!r}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist"]
timeout_constant = 60.0
"""
# Whether a test fails is all that is asked, not the smallest case for which it does.
NO_SHRINKING = """
from hypothesis import Phase

settings.register_profile("mutation", settings.default, phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutation")
"""


def main(folder: Path) -> int:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in ("knorm_core", "suites"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "conftest.py").write_text((ROOT / "conftest.py").read_text("utf-8") + NO_SHRINKING, "utf-8")
    (work / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text("utf-8") + CONFIGURATION, "utf-8")

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    names = [f"knorm_core.{module}.x_{name}__mutmut_*" for module, pure in PURE.items() for name in pure]
    names = [name.replace("x_*__mutmut_*", "*") for name in names]
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "2", *names], cwd=work, check=True)

    results = {
        mutant: code
        for module in PURE
        for mutant, code in json.loads((work / f"mutants/knorm_core/{module.replace('.', '/')}.py.meta").read_text())[
            "exit_code_by_key"
        ].items()
        if any(fnmatch(mutant, name) for name in names)
    }
    return report(work, results)


def report(work: Path, results: dict[str, int | None]) -> int:
    survivors = [mutant for mutant, code in results.items() if code in SURVIVED]
    killed = len(results) - len(survivors)
    explained = tomllib.loads((Path(__file__).parent / "equivalents.toml").read_text("utf-8"))["equivalent"]
    unexplained = []
    for mutant in survivors:
        change = difference(work, mutant)
        reasons = [entry["reason"] for entry in explained if fits(entry, mutant, change)]
        if not reasons:
            unexplained.append(mutant)
        print(f"\n{mutant}: {reasons[0] if reasons else 'NOT EXPLAINED'}\n{change}")
    print(f"\n{killed} of {len(results)} mutants died ({killed / len(results):.1%}), ", end="")
    print(f"{sum(code in TIMEOUT for code in results.values())} of them by running out of time; ", end="")
    print(f"{len(survivors)} survived, {len(unexplained)} of them without a reason in equivalents.toml")
    for module in PURE:
        mine = [mutant for mutant in results if mutant.startswith(f"knorm_core.{module}.")]
        print(f"  {module:<18} {sum(mutant not in survivors for mutant in mine):>3} of {len(mine):>3}")
    return int(killed < LEAST * len(results) or bool(unexplained))


def difference(work: Path, mutant: str) -> str:
    """The lines that a mutant changes, as - and + lines."""
    mutmut = subprocess.run([sys.executable, "-m", "mutmut", "show", mutant], cwd=work, capture_output=True, text=True)
    lines = [line for line in mutmut.stdout.splitlines() if re.match(r"[-+](?![-+])", line)]
    return "\n".join(lines)


def fits(entry: dict[str, str], mutant: str, change: str) -> bool:
    """An entry names a function and what the mutated line reads; mutants' numbers change with the code."""
    added = "\n".join(line[1:].strip() for line in change.splitlines() if line.startswith("+"))
    module, _, function = entry["function"].rpartition(".")
    return fnmatch(mutant, f"knorm_core.{module}.x_{function}__mutmut_*") and entry["line"] == added


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
