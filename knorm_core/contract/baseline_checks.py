"""What a comparison with the uncompressed baseline promises: both sides are measured on the same thing."""

from __future__ import annotations

from knorm_core.contract import tiny_models
from knorm_core.contract.attempts import Attempt, Run, attempting
from knorm_core.contract.checks import Check, check, raised
from knorm_core.contract.evaluator_checks import EVALUATOR
from knorm_core.contract.evaluators import Evaluator
from knorm_core.contract.findings import Broken


@check(EVALUATOR)
def keep_one_is_scored_on_the_same_tokens(evaluator: Evaluator) -> None:
    """Keep ratio 1 returns as many losses as every other keep ratio does.

    Guards against a baseline that is a plain forward over the whole text while compressed rows are scored on
    phase 2 alone: a percentage between the two compares different tokens, and front matter with prose.
    """
    with attempting(evaluator) as attempt:
        for run in (Run(60, 0.5, 32), Run(90, 0.9, 48)):
            compressed, plain = (_count(attempt, run._replace(keep_ratio=ratio)) for ratio in (run.keep_ratio, 1.0))
            if plain != compressed:
                raise Broken(
                    expected=f"{compressed} losses, as at keep ratio {run.keep_ratio}",
                    got=f"{plain} losses",
                )


def _count(attempt: Attempt, run: Run) -> int:
    attempt.runs.append(run)
    model, tokens = getattr(tiny_models, run.model)(), tiny_models.text(run.seq_len)
    try:
        return len(attempt.evaluator(model, tokens, run.keep_ratio, run.prune_after))
    except Exception as error:
        raise Broken(expected="losses", got=raised(error)) from error


BASELINE_CHECKS: tuple[Check, ...] = (keep_one_is_scored_on_the_same_tokens,)
