"""What a comparison with the uncompressed baseline promises: both sides are measured on the same thing."""

from __future__ import annotations

from knorm_core.contract.attempts import attempting
from knorm_core.contract.checks import check
from knorm_core.contract.evaluator_checks import EVALUATOR
from knorm_core.contract.evaluators import LossFunction
from knorm_core.contract.findings import Broken


@check(EVALUATOR)
def keep_one_is_scored_on_the_same_tokens(evaluator: LossFunction) -> None:
    """Keep ratio 1 returns as many losses as every other keep ratio does.

    Guards against a baseline that is a plain forward over the whole text while compressed rows are scored on
    phase 2 alone: a percentage between the two compares different tokens.
    """
    with attempting(evaluator) as attempt:
        for run in (attempt.run(60, 0.5, 32), attempt.run(90, 0.9, 48)):
            compressed, plain = (len(attempt.returned(run._replace(keep_ratio=ratio))) for ratio in (run.keep_ratio, 1))
            if plain != compressed:
                raise Broken(expected=f"{compressed} losses, as at keep ratio {run.keep_ratio}", got=f"{plain} losses")
