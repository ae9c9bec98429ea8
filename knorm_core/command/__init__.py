"""``knorm eval | check | compare | report | prepare | fetch``: what people do at a terminal, thin over the package.

pytest stays the way of the suites; this is the way to a first number. Each command's module is imported when the
command runs, so that ``knorm --help`` needs no torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence

from knorm_core.command.evaluate import add_arguments as evaluate_arguments

_EXIT = """exit status:
  0  done (check: every promise held; compare: no cell moved beyond its tolerance)
  1  check: a promise is broken; compare: a cell moved
  2  bad input, in one sentence
"""
_EXIT_OF_CHECK = """exit status:
  0  every promise held
  1  a promise is broken
  2  bad input, in one sentence
"""
_EXIT_OF_OTHERS = """exit status:
  0  done
  2  bad input, in one sentence
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="knorm",
        description="Is a KV-cache compression result real? Evaluate, check and compare.",
        epilog=f"{_EXIT}\n'knorm COMMAND --help' has an example of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str, help_: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}\n\n{_EXIT_OF_CHECK if name == 'check' else _EXIT_OF_OTHERS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=help_,
        )

    evaluate_arguments(
        command(
            "eval",
            "perplexity of texts under compression, against keep ratio",
            "knorm eval --model ./my-model --text story.txt --policy low_norm --keep-ratios 0.9,0.5,0.1",
        )
    )
    check = command(
        "check",
        "hold a compressor, an evaluator or a policy of yours against the contract",
        "knorm check mypkg.mymodule:my_compress",
    )
    check.add_argument("compressor", nargs="?", metavar="MODULE:NAME", help="a compressor of yours")
    check.add_argument("--evaluator", metavar="MODULE:NAME", help="an evaluator of yours")
    check.add_argument("--policy", metavar="NAME|MODULE:NAME", help="an eviction policy: one by name, or one of yours")
    command("compare", "what moved between two results folders", "knorm compare results/before results/after", False)
    report = command("report", "write the page of a results folder again", "knorm report results")
    report.add_argument("folder", metavar="DIR", help="a results folder, with results.jsonl in it")
    command("prepare", "convert the embedded model, once; print its folder", "knorm prepare")
    command("fetch", "download what is pinned on the hub, with progress shown", "knorm fetch")

    if arguments[:1] == ["compare"]:  # which has a parser of its own
        from knorm_core.compare.__main__ import main as compare

        return compare(arguments[1:], typed="knorm compare")
    options = parser.parse_args(arguments)
    from knorm_core.results.terminal import ended

    return ended(f"knorm {options.command}", lambda: _RUN[options.command](options))


def _evaluate(options: argparse.Namespace) -> int:
    from knorm_core.command.evaluate import run

    return run(options)


def _check(options: argparse.Namespace) -> int:
    import pytest
    from hypothesis.configuration import set_hypothesis_home_dir

    kinds = ("compressor", "evaluator", "policy")
    named = [f"--knorm-{kind}={name}" for kind in kinds if (name := getattr(options, kind))]
    if not named:
        return _refuse("check", "name a compressor, MODULE:NAME, or --evaluator MODULE:NAME or --policy MODULE:NAME")
    ways = ["--pyargs", "knorm_core.contract", "-q", "--no-header", "-p", "no:cacheprovider"]
    # Of an installed package that has a plugin pytest would rewrite the asserts, had this command not imported it.
    ways += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)  # by itself Hypothesis makes .hypothesis/ in the user's current folder
        status = pytest.main([*ways, *named])
    return {pytest.ExitCode.OK: 0, pytest.ExitCode.TESTS_FAILED: 1}.get(pytest.ExitCode(status), 2)


def _report(options: argparse.Namespace) -> int:
    from knorm_core.report import write_report
    from knorm_core.results.file import ResultsError, read_results

    try:
        print(write_report(read_results(options.folder), options.folder))
    except (ResultsError, OSError) as error:
        return _refuse("report", str(error))
    return 0


def _prepare(_: argparse.Namespace) -> int:
    from knorm_core.inputs.checkpoints import ModelNotFoundError
    from knorm_core.inputs.embedded_model import convert_embedded

    try:
        print(convert_embedded())
    except ModelNotFoundError as error:
        return _refuse("prepare", str(error))
    return 0


def _fetch(_: argparse.Namespace) -> int:
    from knorm_core.inputs.hub import HubError, fetch_pinned

    try:
        fetch_pinned()
    except HubError as error:
        return _refuse("fetch", str(error))
    return 0


def _refuse(command: str, sentence: str) -> int:
    print(f"knorm {command}: {sentence}", file=sys.stderr)
    return 2


_RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "eval": _evaluate,
    "check": _check,
    "report": _report,
    "prepare": _prepare,
    "fetch": _fetch,
}
