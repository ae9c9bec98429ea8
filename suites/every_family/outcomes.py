"""One family, every variant of it: how knorm serves it, held to the oracle."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from knorm_core import evaluate, evaluate_batch, evaluate_table
from suites.every_family import shrinking
from suites.every_family.oracle import POSITIONS, NoAnswerError, Oracle, prune_after

KEEP_RATIOS = (0.9, 0.5, 0.1)
LENGTH = 64
#: Difference per token in nats: LayerNorm; float32 islands such as RMSNorm; softmax or the whole model in float32.
TOLERANCES = (1e-10, 1e-5, 1e-4)


@dataclass(frozen=True)
class Outcome:
    """How one variant fared.

    Attributes:
        served: "one pass", "stepwise", "refused", "not built", or "WRONG".
        reason: why it is refused, not built, stepwise or wrong.
        within: the tolerance that the largest difference is within; None where there is no number.
    """

    family: str
    variant: str
    served: str
    reason: str = ""
    within: float | None = None

    def __str__(self) -> str:
        measured = "" if self.within is None else f" within {self.within:.0e}"
        return f"{self.family}, {self.variant}: {self.served}{measured}" + (f": {self.reason}" if self.reason else "")


def outcomes(family: str) -> list[Outcome]:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            variants = list(shrinking.configurations(family))
        except Exception as error:
            return [Outcome(family, "default", "not built", _first_line(error))]
        return [_outcome(family, variant, config) for variant, config in variants]


def _outcome(family: str, variant: str, config: Any) -> Outcome:
    model = None
    for dtype in (torch.float64, torch.float32):
        try:
            model = shrinking.built(family, config, dtype)
            ids = torch.randint(5, shrinking.VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                model(input_ids=ids[None], use_cache=False)
            break
        except Exception as error:
            failed = error
    else:
        return Outcome(family, variant, "not built", _first_line(failed))
    made = functools.partial(Outcome, family, variant)
    try:
        oracle: Oracle | None = Oracle(model, ids, table_changes=variant == shrinking.TABLE_CHANGES)
        silent = ""
    except NoAnswerError as error:
        oracle, silent = None, str(error)
    except Exception as error:
        oracle, silent = None, _first_line(error)
    return _held(made, model, ids, oracle, silent)


def _held(made: Any, model: Any, ids: torch.Tensor, oracle: Oracle | None, silent: str) -> Outcome:
    """Every answer that knorm gives, against the oracle's."""
    worst, methods, wrong, reasons = 0.0, set(), [], []
    for said, rows in _questions(model, ids):
        try:
            answers = rows()
        except ValueError as error:
            reasons.append(_first_line(error, named=False))
            continue
        except Exception as error:
            wrong.append(f"crashes: {_first_line(error)}")
            continue
        for (mode, ratio), answer in answers.items():
            try:
                apart = float((answer.nll - _truth(oracle, silent, mode, ratio, len(answer.nll))).abs().max())
            except NoAnswerError as error:
                wrong.append(f"a number where the model's own code has none: {error}")
                continue
            methods.add((said == "", answer.method))
            worst = max(worst, apart)
            if not apart <= TOLERANCES[-1]:
                wrong.append(f"{said}{answer.method}, {mode}, keep {ratio}: off by {apart:.2g} nats")
    reason = "; ".join(dict.fromkeys(reasons))
    if wrong:
        return made("WRONG", "; ".join(dict.fromkeys(wrong)) + (f" (refused: {reason})" if reason else ""))
    if not methods:
        return made("refused", reason)
    served = sorted({method for plain, method in methods if plain})
    names = {"onepass": "one pass", "stepwise": "stepwise"}
    within = next(limit for limit in TOLERANCES if worst <= limit)
    return made(" and ".join(names[method] for method in served), reason, within)


def _questions(model: Any, ids: torch.Tensor) -> Iterator[tuple[str, Callable[[], dict[tuple[str, float], Any]]]]:
    """Every way to ask: row by row, a table at once, a batch, token by token, and the whole text uncompressed."""
    start = prune_after(len(ids))
    cells = [(mode, ratio) for mode in POSITIONS for ratio in KEEP_RATIOS]

    def single(mode: str, ratio: float, **more: Any) -> dict[tuple[str, float], Any]:
        return {(mode, ratio): evaluate(model, ids, keep_ratio=ratio, positions=mode, prune_after=start, **more)}

    yield "", functools.partial(single, "absolute", 1.0, score_from="start")
    for cell in cells:
        yield "", functools.partial(single, *cell)
    yield (
        "table, ",
        lambda: evaluate_table(model, ids, keep_ratios=(1.0, *KEEP_RATIOS), positions=POSITIONS, prune_after=start),
    )
    yield (
        "batch, ",
        lambda: {
            ("absolute", 0.5): evaluate_batch(
                model, torch.stack([ids.flip(0), ids]), keep_ratio=0.5, prune_after=start
            )[1]
        },
    )
    yield "asked for, ", functools.partial(single, "absolute", 0.5, method="stepwise")


def _truth(oracle: Oracle | None, silent: str, mode: str, ratio: float, count: int) -> torch.Tensor:
    if oracle is None:
        raise NoAnswerError(silent)
    return oracle.plain[-count:] if ratio == 1.0 else oracle.losses(ratio, mode)


def _first_line(error: Exception, named: bool = True) -> str:
    """A message without what changes from machine to machine."""
    line = str(error).strip().partition("\n")[0]
    line = re.sub(r"\b\d+\.?\d*e[-+]\d+|\b\d+\.\d+", "#", line)[:300]
    return f"{type(error).__name__}: {line}" if named else line
