"""What every compressor promises of when it fires, and of what its answer must not depend on."""

from __future__ import annotations

from hypothesis import strategies as st

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase, grow, row_of
from knorm_core.contract.checks import check
from knorm_core.contract.findings import Broken
from knorm_core.contract.tracing import same_pairs
from knorm_core.contract.trials import Trial, cases, for_every, ratios

FIRING = "when it fires and what it depends on"


@check(FIRING, "threshold")
def fires_from_the_threshold_on(compressor: Compressor) -> None:
    """A layer that holds prune_after keys or more is compressed.

    Guards against > for >=, and against comparing with a length that the cache never reaches: a cache that
    tops out at 511 and a prune_after of 512 print the uncompressed loss as a result.
    """

    def holds(trial: Trial, case: CacheCase, surplus: int) -> None:
        longest = case.lengths[0] if trial.compressor.claims.at_threshold else case.lengths[0] - 1
        prune_after = longest - min(surplus, longest - 1)
        call = trial.compress(case, 0.5, prune_after)
        if call.after[0][0].shape[2] >= case.lengths[0]:
            raise Broken(
                expected=f"a layer of {case.lengths[0]} keys to shrink at prune_after={prune_after}",
                got=f"{call.after[0][0].shape[2]} keys",
            )

    least = max(2, compressor.claims.min_length)
    case = cases(compressor, lengths=st.tuples(st.integers(least, least + 20)))
    for_every(compressor, holds, case=case, surplus=st.integers(0, 20))


@check(FIRING, "threshold")
def never_fires_below_the_threshold(compressor: Compressor) -> None:
    """A layer that holds fewer than prune_after keys comes back as it was.

    Guards against compressing during phase 1, where the loss is meant to be the model's own.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, missing: int) -> None:
        call = trial.compress(case, keep_ratio, max(case.lengths) + missing)
        same_pairs(call.before, call.after, "as before", call.before)

    # One key short of it is where a threshold is off by one.
    missing = st.just(1) | st.integers(2, 9)
    for_every(compressor, holds, case=cases(compressor, layers=2), keep_ratio=ratios(), missing=missing)


@check(FIRING, "single_heads", "threshold", "count")
def fires_again(compressor: Compressor) -> None:
    """A cache that has been compressed and has grown back to the threshold is compressed again.

    Guards against compressors that fire once and then never again, and against ones that take the length
    of the text for the length of the cache.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        threshold = case.lengths[0]
        prune_after = threshold if trial.compressor.claims.at_threshold else threshold - 1
        count = trial.compressor.claims.kept(threshold, keep_ratio)
        pairs, text = case.pairs(), repr(case)
        for eviction in (1, 2, 3):
            pairs = trial.compress(pairs, keep_ratio, prune_after, text=text).after
            length = pairs[0][0].shape[2]
            if length != count:
                raise Broken(expected=f"eviction {eviction} to leave {count} of {threshold} keys", got=length)
            if length == threshold:
                return
            more = case.but(lengths=(threshold - length,), seed=case.seed + eviction)
            pairs, text = grow(pairs, more.pairs()), f"what came out, grown by {more!r}"

    least = max(2, compressor.claims.min_length)
    case = cases(compressor, lengths=st.tuples(st.integers(least, least + 20)))
    for_every(compressor, holds, case=case, keep_ratio=ratios())


@check(FIRING, "comparable", "skip_layers")
def skipped_layers_are_untouched(compressor: Compressor) -> None:
    """Layers in skip_layers come back bit-identical, and the others are compressed all the same.

    Guards against skip_layers being ignored, or counted from 1. The paper's scripts skip layers 0 and 1,
    and skipping layer 0 is what hides position drift.
    """

    def holds(trial: Trial, case: CacheCase, skip: set[int]) -> None:
        skipped = tuple(sorted(layer for layer in skip if layer < len(case.lengths)))
        everything = trial.compress(case, 0.5)
        call = trial.compress(case, 0.5, skip_layers=skipped)
        for layer, (before, plain, after) in enumerate(zip(call.before, everything.after, call.after, strict=True)):
            expected = before if layer in skipped else plain
            what = f"of layer {layer} as " + ("before" if layer in skipped else "without skip_layers")
            same_pairs([expected], [after], what, [before])

    for_every(compressor, holds, case=cases(compressor, layers=4), skip=st.sets(st.integers(0, 3), min_size=1))


@check(FIRING, "several_layers", "comparable", "layers")
def layers_are_independent(compressor: Compressor) -> None:
    """Each layer is compressed as if it were alone, whatever the lengths of the others.

    Guards against reading length, count or survivors off layer 0 and using them for all layers, which
    goes unnoticed until layers are skipped and lengths differ.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, prune_after: int) -> None:
        together = trial.compress(case, keep_ratio, prune_after)
        for layer in range(len(case.lengths)):
            alone = trial.compress(case.but(only_layers=(layer,)), keep_ratio, prune_after)
            same_pairs(
                alone.after,
                together.after[layer : layer + 1],
                f"of layer {layer} as when it is alone",
                together.before[layer : layer + 1],
            )

    for_every(compressor, holds, case=cases(compressor, layers=3), keep_ratio=ratios(), prune_after=st.integers(1, 24))


@check(FIRING, "several_rows", "comparable", "rows")
def batch_rows_are_independent(compressor: Compressor) -> None:
    """Each row of a batch is compressed as if it were alone.

    Guards against norms averaged or ranked over the batch: a text's loss then depends on its neighbours.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, row: int) -> None:
        together = trial.compress(case, keep_ratio)
        alone = trial.compress(case.but(only_rows=(row,)), keep_ratio)
        before, after = row_of(together.before, row), row_of(together.after, row)
        same_pairs(alone.after, after, f"of row {row} as when it is alone", before)

    case = cases(compressor, batch=st.integers(2, 3))
    for_every(compressor, holds, case=case, keep_ratio=ratios(), row=st.integers(0, 1))


@check(FIRING, "deterministic")
def two_calls_agree(compressor: Compressor) -> None:
    """The same cache compressed twice, with another in between, gives the same survivors.

    Guards against state that outlives a call, and against random choices without a seed: a result that
    nobody can reproduce.
    """

    def holds(trial: Trial, case: CacheCase, other: CacheCase, keep_ratio: float) -> None:
        first = trial.compress(case, keep_ratio)
        trial.compress(other, keep_ratio)
        second = trial.compress(case, keep_ratio)
        same_pairs(first.after, second.after, "as at the first call", first.before)

    for_every(
        compressor,
        holds,
        case=cases(compressor, layers=2),
        other=cases(compressor),
        keep_ratio=ratios(),
    )


@check(FIRING, "refuses_ratio")
def senseless_ratio_is_refused(compressor: Compressor) -> None:
    """A keep ratio of zero or less, above one or NaN raises.

    Guards against percentages: keep_ratio=50 keeps everything, and a table of equal numbers looks like
    lossless compression.
    """

    def holds(trial: Trial, keep_ratio: float) -> None:
        case = CacheCase(lengths=(compressor.claims.min_length + 4,))
        try:
            call = trial.compress(case, keep_ratio)
        except Broken:
            return
        raise Broken(
            expected=f"keep_ratio={keep_ratio} to raise",
            got=f"{call.after[0][0].shape[2]} of {case.lengths[0]} keys",
        )

    for_every(compressor, holds, keep_ratio=st.sampled_from([50.0, 1.01, 0.0, -0.5, float("nan")]))
