"""``knorm eval``: a table of perplexity against keep ratio per text set, with the interval of each change."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from knorm_core.evaluation import Evaluation
    from knorm_core.inputs.texts import Text

_DEFAULT_RATIOS = "0.9,0.7,0.5,0.3,0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="PATH_OR_ID",
        help="a folder, a GGUF file, a hub id, or (default) %(default)s",
    )
    parser.add_argument(
        "--text",
        action="append",
        metavar="NAME_OR_FILE",
        help="a text set by name, or a text file or folder of yours; may be given several times "
        "(default: embedded-short)",
    )
    parser.add_argument("--text-dir", metavar="DIR", help="a local mirror of Wikitext-2 and PG-19")
    parser.add_argument(
        "--policy",
        default="low_norm",
        metavar="NAME|MODULE:NAME",
        help="which keys stay: a policy by name, or one of yours by import (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-ratios", default=_DEFAULT_RATIOS, metavar="R[,R]", help="each in (0, 1] (default: %(default)s)"
    )
    parser.add_argument("--prune-after", type=int, default=256, metavar="N", help="cache length (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="cut each text to N tokens")
    parser.add_argument(
        "--positions", default="absolute", metavar="MODE", help="absolute, cache or rerotated (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="float32", help="precision (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of torch (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; return the exit status."""
    from knorm_core.arguments import POSITIONS
    from knorm_core.counts import SHORTEST_TEXT, check_choice, check_int
    from knorm_core.inputs.models import DTYPES, load_model
    from knorm_core.policy_names import find_policy
    from knorm_core.results.terminal import Terminal

    if os.getcwd() not in sys.path:  # of a script; a policy of the user's may be there
        sys.path.append(os.getcwd())
    try:
        ratios = _ratios(options.keep_ratios)
        if options.dtype not in DTYPES:
            raise ValueError(f"--dtype {options.dtype} is not one of {', '.join(DTYPES)}")
        # Before a model is loaded, which may take minutes.
        find_policy(options.policy)
        check_choice("--positions", options.positions, POSITIONS)
        check_int("--prune-after", options.prune_after, 1)
        if options.max_tokens is not None:
            check_int("--max-tokens", options.max_tokens, SHORTEST_TEXT)
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading weights
        torch.set_num_threads(1)
        model, tokenizer = load_model(options.model, getattr(torch, options.dtype), options.device)
        console = Terminal()
        for name in options.text or ["embedded-short"]:
            texts = _texts(name, tokenizer, options)
            tables = _evaluate(model, texts, ratios, options)
            console.print(_table(f"{name}, {options.policy}, {options.model} in {options.dtype}", ratios, tables))
            console.print(_precision(ratios, tables), soft_wrap=True, highlight=False, markup=False)
    except (ValueError, TypeError) as error:
        print(f"knorm eval: {error}", file=sys.stderr)
        return 2
    return 0


def _ratios(value: str) -> tuple[float, ...]:
    from knorm_core.counts import check_keep_ratio

    try:
        ratios = {1.0, *map(float, value.split(","))}
    except ValueError:
        raise ValueError(f"--keep-ratios {value} is not a list of numbers such as 0.9,0.5,0.1") from None
    for ratio in ratios:
        check_keep_ratio(ratio)
    return tuple(sorted(ratios, reverse=True))


def _texts(name: str, tokenizer: Any, options: argparse.Namespace) -> list[Text]:
    from knorm_core.inputs.texts import TEXT_SETS, load_texts

    if not name:  # a path that is empty would be the current folder
        raise ValueError("--text is empty: name a text set, a text file or a folder")
    own = name if name in TEXT_SETS else Path(name)  # a file or folder of the user's
    return load_texts(own, tokenizer, max_eval_tokens=options.max_tokens, text_dir=options.text_dir)


def _evaluate(
    model: Any, texts: list[Text], ratios: tuple[float, ...], options: argparse.Namespace
) -> list[dict[float, Evaluation]]:
    """One table per text, with a bar on a terminal that says how far it is."""
    from rich.console import Console
    from rich.progress import track

    from knorm_core.evaluator import evaluate_rows

    asked = {"positions": options.positions, "policy": options.policy, "prune_after": options.prune_after}
    rows = {ratio: {"keep_ratio": ratio, **asked} for ratio in ratios}
    console = Console(file=sys.stderr)
    steps = track(texts, "evaluating", console=console, transient=True, disable=not console.is_terminal)
    return [evaluate_rows(model, text.input_ids, rows) for text in steps]


def _table(title: str, ratios: tuple[float, ...], tables: list[dict[float, Evaluation]]) -> Table:
    from rich.table import Table

    from knorm_core.experiments.controls import pooled, shown_change
    from knorm_core.results.interval import Interval
    from knorm_core.results.terminal import plain

    table = Table(title=plain(title, "table.title"), title_justify="left")
    for heading in ("keep ratio", "PPL", "change", "95 % interval", "mean cache"):
        table.add_column(heading, justify="right", overflow="fold")
    uncompressed = [of_text[1.0] for of_text in tables]
    for ratio in ratios:
        row = pooled([of_text[ratio] for of_text in tables], uncompressed)
        change = shown_change(Interval.of(row, "ratio"))
        cells = change.values() if ratio < 1 else ("baseline", "")
        table.add_row(str(ratio), f"{row['ppl']:,.2f}", *cells, f"{row['mean_cache']:.1f}")
    return table


def _precision(ratios: tuple[float, ...], tables: list[dict[float, Evaluation]]) -> str:
    from knorm_core.experiments.intervals import precision

    rows = {str(ratio): [of_text[ratio] for of_text in tables] for ratio in ratios if ratio < 1}
    return precision(rows, [of_text[1.0] for of_text in tables]) if rows else ""
