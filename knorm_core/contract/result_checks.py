"""What every compressor promises of the cache that it returns, whatever it scores by."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import strategies as st

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase
from knorm_core.contract.checks import check
from knorm_core.contract.findings import Broken
from knorm_core.contract.limits import expected_count, tame
from knorm_core.contract.tracing import origins, picture, same_pairs, same_survivors
from knorm_core.contract.trials import Trial, cases, for_every, ratios

RESULT = "what comes back"


@check(RESULT, "count")
def keeps_the_declared_count(compressor: Compressor) -> None:
    """Every compressed layer keeps exactly as many keys as the declared count rule says.

    Guards against counts that are one off, as binary floating point makes them (ceil(100 * 0.55) is 56),
    against keeping what should go, and against emptying a cache.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        claims = trial.compressor.claims
        for layer, (keys, values) in enumerate(trial.compress(case, keep_ratio).after):
            count = claims.kept(case.lengths[layer], keep_ratio)
            if keys.shape[2] != count or values.shape[2] != count:
                raise Broken(
                    expected=expected_count(claims, case.lengths[layer], keep_ratio),
                    got=f"{keys.shape[2]} keys and {values.shape[2]} values",
                    layer=layer,
                )

    # Long layers too: binary and decimal counts part at (100, 0.55), but hardly ever below 50 tokens.
    least = max(1, compressor.claims.min_length)
    short = cases(compressor, layers=2)
    long = st.sampled_from([n for n in (25, 50, 100, 200) if n >= least] or [least])
    awkward = st.builds(tame(compressor.claims).but, lengths=st.tuples(long))
    for_every(compressor, holds, case=short, keep_ratio=ratios())
    for_every(compressor, holds, case=awkward, keep_ratio=st.sampled_from([0.55, 0.07, 0.14, 0.28, 0.56, 0.29, 0.57]))


@check(RESULT, "traceable", "order")
def keeps_temporal_order(compressor: Compressor) -> None:
    """Survivors stay in the order in which they were fed.

    Guards against survivors in order of their score, which is what sort-and-slice leaves and what whatever
    reads positions off the cache trips over (kvpress issue 173).
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        call = trial.compress(case, keep_ratio)
        for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
            index = origins(before, after, layer)
            if bool((index.diff(dim=-1) < 0).any()):
                row, head = (index.diff(dim=-1) < 0).any(dim=-1).nonzero()[0].tolist()
                got = index[row, head].tolist()
                raise Broken(
                    expected=f"tokens {sorted(got)} in this order",
                    got=f"{got}",
                    picture=picture(before[0].shape[2], sorted(got), got),
                    layer=layer,
                    row=row,
                    head=head,
                )

    for_every(compressor, holds, case=cases(compressor, layers=2), keep_ratio=ratios())


@check(RESULT, "unmerged")
def values_stay_with_their_keys(compressor: Compressor) -> None:
    """Every survivor has its own key and its own value, bit for bit, and no token survives twice.

    Guards against values gathered with another index than the keys: of another head, row or layer, or of
    the order before sorting. Attention then reads one token's content at another's address.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        call = trial.compress(case, keep_ratio)
        for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
            index = origins(before, after, layer).sort(dim=-1).values
            if bool((index.diff(dim=-1) == 0).any()):
                row, head = (index.diff(dim=-1) == 0).any(dim=-1).nonzero()[0].tolist()
                raise Broken(
                    expected="each token at most once", got=index[row, head].tolist(), layer=layer, row=row, head=head
                )

    for_every(compressor, holds, case=cases(compressor, layers=2), keep_ratio=ratios())


@check(RESULT, "value_dim")
def values_may_be_wider_or_narrower(compressor: Compressor) -> None:
    """Values come back whole where they are wider or narrower than keys.

    Guards against one gather index, expanded to the keys' width, being used for both: gather then cuts
    wider values to that width without a word. Multi-head latent attention has such caches.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        call = trial.compress(case, keep_ratio)
        for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
            if compressor.claims.unmerged:
                origins(before, after, layer)

    case = cases(compressor, value_dim=st.sampled_from([12, 6]), head_dim=8)
    for_every(compressor, holds, case=case, keep_ratio=ratios())


@check(RESULT)
def ratio_one_changes_nothing(compressor: Compressor) -> None:
    """At keep ratio 1 the cache comes back as it was, in the same order.

    Guards against a baseline that is not one: reordered or rounded keys in the row all others are
    compared with.
    """

    def holds(trial: Trial, case: CacheCase) -> None:
        call = trial.compress(case, 1.0)
        if compressor.claims.order or not compressor.claims.unmerged:
            same_pairs(call.before, call.after, "as before", call.before)
        else:  # any order is within its claims
            for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
                every = origins(before, before, layer)
                same_survivors(every, origins(before, after, layer), before[0].shape[2], layer)

    for_every(compressor, holds, case=cases(compressor, layers=2))


@check(RESULT, "leaves_input")
def input_is_left_alone(compressor: Compressor) -> None:
    """The cache that is passed in still holds the same tensors, with the same numbers, after the call.

    Guards against compression in place: a caller who compares ratios on one cache then compresses what is
    compressed already, and every row after the first is wrong.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        pairs = case.pairs()
        tensors = [tensor for pair in pairs for tensor in pair]
        packed = compressor.pack(pairs)
        same = Trial(_reusing(compressor, packed), trial.calls)
        call = same.compress(case, keep_ratio)
        now = [(keys, values) for keys, values in compressor.unpack(packed, packed)]
        if len(now) != len(call.before):
            raise Broken(expected=f"{len(call.before)} layers in the input afterwards", got=len(now))
        untouched = case.pairs()
        same_pairs(untouched, now, "of the input, after the call, as before", untouched)
        same_pairs(untouched, [(tensors[2 * i], tensors[2 * i + 1]) for i in range(len(now))], "as before")

    for_every(compressor, holds, case=cases(compressor, layers=2), keep_ratio=ratios())


@check(RESULT)
def dtype_and_device_are_kept(compressor: Compressor) -> None:
    """Keys and values come back in the dtype and on the device that they had.

    Guards against scores computed in float32 leaking into the cache, which doubles its memory, and
    against indices made on the CPU.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

    def holds(trial: Trial, case: CacheCase, keep_ratio: float, device: str) -> None:
        if device == "cpu":
            call = trial.compress(case, keep_ratio)
        else:
            pairs = [(keys.to(device), values.to(device)) for keys, values in case.pairs()]
            call = trial.compress(pairs, keep_ratio, text=f"{case!r}, on {device}")
        for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
            for name, old, new in zip(("keys", "values"), before, after, strict=True):
                if (old.dtype, old.device) != (new.dtype, new.device):
                    raise Broken(
                        expected=f"{name} of {old.dtype} on {old.device}",
                        got=f"{new.dtype} on {new.device}",
                        layer=layer,
                    )

    for_every(compressor, holds, case=cases(compressor), keep_ratio=ratios(), device=st.sampled_from(devices))


@check(RESULT, "copies")
def evicted_memory_is_freed(compressor: Compressor) -> None:
    """A compressed layer is contiguous and holds no memory beyond its survivors.

    Guards against sort-and-slice: a slice is a view that keeps the whole sorted cache alive, so that
    compression saves no memory at all until the next token copies it.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        call = trial.compress(case, keep_ratio)
        for layer, (before, after) in enumerate(zip(call.before, call.after, strict=True)):
            if after[0].shape[2] == before[0].shape[2]:
                continue
            for name, tensor in zip(("keys", "values"), after, strict=True):
                needed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
                if held != needed or not tensor.is_contiguous():
                    how = "contiguous" if tensor.is_contiguous() else "not contiguous"
                    raise Broken(
                        expected=f"{name} contiguous, in {needed} bytes", got=f"{how}, in {held} bytes", layer=layer
                    )

    for_every(compressor, holds, case=cases(compressor), keep_ratio=ratios())


@check(RESULT, "comparable")
def memory_layout_does_not_matter(compressor: Compressor) -> None:
    """Keys and values that are transposed views, as attention layers make them, are compressed alike.

    Guards against view() and other code that only ever met contiguous tensors.
    """

    def holds(trial: Trial, case: CacheCase, keep_ratio: float) -> None:
        plain = trial.compress(case, keep_ratio)
        strided = trial.compress(case.but(strided=True), keep_ratio)
        same_pairs(plain.after, strided.after, "as from contiguous tensors", plain.before)

    for_every(compressor, holds, case=cases(compressor, kv_heads=st.integers(2, 3)), keep_ratio=ratios())


def _reusing(compressor: Compressor, packed: object) -> Compressor:
    """The same compressor, always handed this cache, so that a check can look at it afterwards."""
    return dataclasses.replace(compressor, pack=lambda pairs: packed)
