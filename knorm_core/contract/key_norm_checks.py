"""What a compressor by key norm promises on top: which keys survive, and what must not change that."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase, lowest_norms
from knorm_core.contract.checks import check
from knorm_core.contract.findings import Broken
from knorm_core.contract.tracing import origins, same_survivors
from knorm_core.contract.trials import Trial, cases, for_every, ratios

KEY_NORM = "key norm"


def survivors(trial: Trial, case: CacheCase, keep_ratio: float) -> torch.Tensor:
    """Indices of the survivors of a cache of one layer: (batch, kv_heads, kept)."""
    call = trial.compress(case, keep_ratio)
    return origins(call.before[0], call.after[0])


def keeps_the_lowest(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
    call = trial.compress(case, keep_ratio)
    kept = origins(call.before[0], call.after[0])
    keys = call.before[0][0]
    norms = keys.double().norm(dim=-1)
    claims = trial.compressor.claims
    expected = lowest_norms(keys, kept.shape[-1], claims.sinks, claims.recent)
    same_survivors(expected, kept, keys.shape[2], norms=norms)


@check(KEY_NORM, "comparable", "traceable", "key_norm")
def lowest_norms_survive(compressor: Compressor) -> None:
    """In every row and KV head, the keys of smallest L2 norm survive.

    Guards against the sign (highest instead of lowest), against norms averaged over heads or one head's
    choice used for all, and against another norm than L2.
    """
    for_every(compressor, keeps_the_lowest, case=cases(compressor), keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "key_norm", "ties")
def equal_norms_keep_the_earlier(compressor: Compressor) -> None:
    """Of keys with equal norm, the earlier token survives.

    Guards against topk and unstable sorts, whose choice among equals depends on device, length and
    version: a table made on one machine does not hold on the next.
    """
    # Beyond 16 elements torch sorts by another algorithm, which is the one that shuffles equals.
    least = compressor.claims.min_length
    lengths = st.tuples(st.integers(least, least + 60))
    case = cases(compressor, keys="tied", lengths=lengths)
    for_every(compressor, keeps_the_lowest, case=case, keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "high_precision", "key_norm", "rounded")
def rounding_noise_decides_nothing(compressor: Compressor) -> None:
    """Norms that differ by float32 rounding noise count as equal: the earlier token survives.

    Guards against the last bit of the float32 rotary tables deciding which of two occurrences of a token
    survives: perturbing those tables by one ulp moved perplexity tables by up to 3e-3.
    """
    case = cases(compressor, keys="noise", dtypes=("float32", "float64"))
    for_every(compressor, keeps_the_lowest, case=case, keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "low_precision", "short_layers", "key_norm", "float32_norms")
def low_precision_keys_are_scored_in_float32(compressor: Compressor) -> None:
    """Norms of bfloat16 and float16 keys are computed in at least float32.

    Guards against norms in bfloat16, in which most keys of a head tie and the choice is left to
    tie-breaking (kvpress issue 276).
    """
    claims = compressor.claims
    case = cases(compressor, keys="near", dtypes=("bfloat16", "float16"))

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        call = trial.compress(case, keep_ratio)
        kept = origins(call.before[0], call.after[0])
        norms = call.before[0][0].double().norm(dim=-1)
        norms[..., : claims.sinks] = -2.0
        norms[..., case.lengths[0] - claims.recent :] = -1.0
        lowest = norms.sort(dim=-1, stable=True).indices[..., : kept.shape[-1]]
        same_survivors(lowest, kept, case.lengths[0], norms=norms)

    for_every(compressor, holds, case=case, keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "key_norm")
def scale_changes_nothing(compressor: Compressor) -> None:
    """Scaling all keys by a power of two leaves the survivors as they are.

    Guards against squares that overflow in float16 (beyond a norm of 256) or vanish, against absolute
    thresholds, and against an epsilon added to norms.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, exponent: int) -> None:
        plain = survivors(trial, case, keep_ratio)
        scaled = survivors(trial, case.but(scale=2.0**exponent), keep_ratio)
        same_survivors(plain, scaled, case.lengths[0])

    # 2⁹ times the largest norm drawn here, about 11, is within float16.
    for_every(
        compressor,
        holds,
        case=cases(
            compressor, lengths=st.tuples(st.integers(compressor.claims.min_length, compressor.claims.min_length + 19))
        ),
        keep_ratio=ratios(),
        exponent=st.sampled_from([9, -4, 1]),
    )


@check(KEY_NORM, "comparable", "traceable", "high_precision", "key_norm")
def rotation_changes_nothing(compressor: Compressor) -> None:
    """Rotating keys as RoPE does leaves the survivors as they are, whatever the positions.

    Guards against norms over a part of the head (the first half, the rotated quarter) and against L1 or
    maximum norms, which rotation changes.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, position: int) -> None:
        plain = survivors(trial, case, keep_ratio)
        rotated = survivors(trial, case.but(rotate=position), keep_ratio)
        same_survivors(plain, rotated, case.lengths[0])

    case = cases(compressor, dtypes=("float32", "float64"))
    for_every(compressor, holds, case=case, keep_ratio=ratios(), position=st.integers(0, 5000))


@check(KEY_NORM, "comparable", "traceable", "key_norm")
def heads_choose_for_themselves(compressor: Compressor) -> None:
    """Permuting the KV heads permutes the survivors with them.

    Guards against one head's choice used for all, and against reshapes that mix heads with tokens.
    """

    times = compressor.claims.repeats_heads

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        order = tuple(reversed(range(case.kv_heads)))
        plain = survivors(trial, case, keep_ratio)
        permuted = survivors(trial, case.but(heads=order), keep_ratio)
        same_survivors(
            plain[:, [times * head + copy for head in order for copy in range(times)]], permuted, case.lengths[0]
        )

    for_every(compressor, holds, case=cases(compressor, kv_heads=st.integers(2, 4)), keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "unprotected", "key_norm")
def position_decides_nothing(compressor: Compressor) -> None:
    """The same keys in reverse order leave the same keys: only norms count, not positions.

    Guards against a protected window of recent tokens or sinks, which is another method under the
    same name.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        length = case.lengths[0]
        plain = survivors(trial, case, keep_ratio)
        reverse = survivors(trial, case.but(tokens=tuple(reversed(range(length)))), keep_ratio)
        same_survivors(plain, length - 1 - reverse, case.lengths[0])

    for_every(compressor, holds, case=cases(compressor), keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "key_norm")
def values_decide_nothing(compressor: Compressor) -> None:
    """Other values with the same keys leave the same survivors.

    Guards against scoring values, or keys and values together, as some methods do.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        plain = survivors(trial, case, keep_ratio)
        loud = survivors(trial, case.but(loud_values=True), keep_ratio)
        same_survivors(plain, loud, case.lengths[0])

    for_every(compressor, holds, case=cases(compressor, head_dim=8), keep_ratio=ratios())


@check(KEY_NORM, "comparable", "traceable", "key_norm")
def smaller_ratio_keeps_a_subset(compressor: Compressor) -> None:
    """What survives at a smaller keep ratio also survives at a larger one.

    Guards against selections that change with the count (topk among equals, thresholds, strides), for
    which keep ratios cannot be compared.
    """

    def holds(trial: Trial, case: CacheCase, smaller: float, step: int) -> None:
        larger = min(round(smaller + step / 100, 2), 0.99)
        few, many = survivors(trial, case, smaller), survivors(trial, case, larger)
        missing = ~(few.unsqueeze(-1) == many.unsqueeze(-2)).any(dim=-1)
        if bool(missing.any()):
            row, head, slot = missing.nonzero()[0].tolist()
            raise Broken(
                expected=f"token {few[row, head, slot]}, kept at {smaller}, to be kept at {larger}",
                got=f"{many[row, head].tolist()} at {larger}, {few[row, head].tolist()} at {smaller}",
                row=row,
                head=head,
            )

    least = compressor.claims.min_length
    keys = st.sampled_from(["distinct", "tied"] if compressor.claims.ties else ["distinct"])
    case = cases(compressor, keys=keys, lengths=st.tuples(st.integers(least, least + 60)))
    for_every(compressor, holds, case=case, smaller=ratios(), step=st.integers(1, 50))


@check(KEY_NORM, "key_norm", "refuses_nan")
def nan_is_refused(compressor: Compressor) -> None:
    """A NaN or infinite key raises.

    Guards against overflowing models: comparisons with NaN are false, so sorts put such keys anywhere
    and the table shows a number all the same.
    """

    def holds(trial: Trial, case: CacheCase, poison: str) -> None:
        try:
            trial.compress(case.but(poison=poison), 0.5)
        except Broken:
            return
        raise Broken(expected=f"an error: the last key of the last head is {poison}", got="a compressed cache")

    # prune_after is at least 1: what compresses only beyond it leaves a single key alone, unread.
    least = max(compressor.claims.min_length, 1 if compressor.claims.at_threshold else 2)
    case = cases(compressor, lengths=st.tuples(st.integers(least, least + 24)))
    for_every(compressor, holds, case=case, poison=st.sampled_from(["nan", "inf"]))
