"""What every policy promises: an engine that plays its evictions forward relies on it."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from knorm_core.contract.checks import POLICY_GROUP, check
from knorm_core.contract.findings import Broken
from knorm_core.contract.policies import CheckedPolicy
from knorm_core.contract.policy_both_ways import same_both_ways
from knorm_core.contract.policy_cases import KV_HEADS, PolicyCase
from knorm_core.contract.policy_peeks import peeks
from knorm_core.contract.policy_trials import PolicyTrial, for_every_case, same_survivors
from knorm_core.counts import SHORTEST_TEXT
from knorm_core.policy import Seen


@check(POLICY_GROUP)
def scores_can_be_ranked(policy: CheckedPolicy) -> None:
    """Scores are real numbers that broadcast to (rows, kv_heads, alive), none of them NaN.

    Guards against a lost axis, which mixes heads or texts as soon as there are several, and against 0/0 where all
    keys or all attention are alike.
    """

    def holds(trial: PolicyTrial, case: PolicyCase, one_token: bool, dtype: str) -> None:
        trial.survivors(case.but(one_token=one_token, dtype=dtype))

    dtypes = st.sampled_from(["float64", "float32", "bfloat16"])
    # Three texts: a lost axis of two would pass for that of the two KV heads.
    for_every_case(policy, holds, texts=3, one_token=st.booleans(), dtype=dtypes)


@check(POLICY_GROUP, "finite")
def scores_are_finite(policy: CheckedPolicy) -> None:
    """Scores of keys that the policy does not protect are finite.

    Guards against the logarithm of attention that rounds to zero: of keys that share an infinite score the earlier
    stay, whatever they are.
    """

    def holds(trial: PolicyTrial, case: PolicyCase, dtype: str) -> None:
        def finite(seen: Seen, scores: torch.Tensor) -> None:
            alive = scores.shape[-1]
            free = scores[..., getattr(trial.policy, "sinks", 0) : alive - trial.policy.recent]
            if free.is_floating_point() and bool((infinite := ~free.isfinite()).any()):
                raise Broken(
                    expected="finite scores",
                    got=f"{float(free[infinite][0])} for {int(infinite.sum())} of {free.numel()} keys",
                    layer=seen.layer,
                )

        _noted(trial, case.but(dtype=dtype), finite)

    for_every_case(policy, holds, dtype=st.sampled_from(["float64", "bfloat16"]))


@check(POLICY_GROUP)
def sees_no_future(policy: CheckedPolicy) -> None:
    """Changing later tokens leaves earlier evictions as they are.

    Guards against scores that are normalised, or ranked, over the whole text: a policy that reads "key" is asked for
    all keys of a text at once, and in use it never would be.
    """

    def holds(trial: PolicyTrial, case: PolicyCase, after: int) -> None:
        later = min(case.prune_after + after, case.seq_len - 1)
        before, changed = trial.survivors(case), trial.survivors(case.but(later=later))
        same_survivors(before, changed, until=later, changed=f"tokens from {later} on")

    for_every_case(policy, holds, after=st.integers(0, 30))


@check(POLICY_GROUP)
def same_answer_twice(policy: CheckedPolicy) -> None:
    """The same text evaluated twice, with another in between, gives the same evictions.

    Guards against random numbers from the global generator, and against memory that the policy keeps itself in place
    of `observe`, which the next text inherits.
    """

    def holds(trial: PolicyTrial, case: PolicyCase) -> None:
        first = trial.survivors(case)
        trial.survivors(case.but(seeds=(case.seeds[0] + 1,)))
        same_survivors(first, trial.survivors(case), in_="the second of two runs")

    for_every_case(policy, holds)


@check(POLICY_GROUP, "rows")
def rows_are_independent(policy: CheckedPolicy) -> None:
    """Each text of a batch has the evictions that it has alone.

    Guards against means and maxima over the axis of rows.
    """

    def holds(trial: PolicyTrial, case: PolicyCase) -> None:
        together = trial.survivors(case)
        for row, seed in enumerate(case.seeds):
            alone = trial.survivors(case.but(seeds=(seed,)))
            of_row = {place: positions[row : row + 1] for place, positions in together.items()}
            same_survivors(alone, of_row, text=f"{row} of the batch")

    for_every_case(policy, holds, texts=2)


@check(POLICY_GROUP, "heads")
def heads_are_independent(policy: CheckedPolicy) -> None:
    """Each KV head evicts by its own keys, values, queries and attention, unless all heads keep the same tokens.

    Guards against means and maxima over the axis of heads. A policy that means them returns (rows, 1, alive), and so
    says that heads do not choose for themselves.
    """

    def holds(trial: PolicyTrial, case: PolicyCase, head: int) -> None:
        shared: list[bool] = []
        before = _noted(trial, case, lambda seen, scores: shared.append(scores.ndim < 2 or scores.shape[-2] == 1))
        if all(shared):
            return
        other = trial.survivors(case.but(other_head=1 - head))

        def own(survivors: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
            # In layer 0 alone: what enters the next layer has passed through all heads.
            return {place: kept[:, head : head + 1] for place, kept in survivors.items() if place[0] == 0}

        same_survivors(own(before), own(other), changed=f"KV head {1 - head}", looked_at=f"KV head {head}")

    for_every_case(policy, holds, head=st.integers(0, KV_HEADS - 1))


@check(POLICY_GROUP)
def protected_keys_stay(policy: CheckedPolicy) -> None:
    """The first and the latest tokens stay where they are protected, or where the policy claims to keep them.

    Guards against a window whose place was right at the first eviction alone, and against scores for it that other
    keys exceed.
    """
    claims = policy.claims

    def holds(trial: PolicyTrial, case: PolicyCase, sinks: int, recent: int) -> None:
        protected = trial.survivors(case.but(sinks=sinks, recent=recent))
        _stay(protected, sinks, max(recent, trial.policy.recent), "protected")
        if claims.sinks or claims.recent:
            _stay(trial.survivors(case), claims.sinks, claims.recent, "claimed")

    for_every_case(policy, holds, protected=5, sinks=st.integers(0, 2), recent=st.integers(0, 3))


@check(POLICY_GROUP)
def kept_counts_are_exact(policy: CheckedPolicy) -> None:
    """Every eviction leaves exactly as many keys as it is to, in every row and head, and no key twice.

    Guards against policies that write into what they are shown: the tensors are the engine's own.
    """

    def holds(trial: PolicyTrial, case: PolicyCase) -> None:
        survivors = trial.survivors(case)
        schedules = case.setting(trial.policy).schedules
        for (layer, step), positions in survivors.items():
            [after] = [kept for at, _, kept in schedules[layer] if at == step]
            counts = (positions >= 0).sum(-1)
            if bool((counts != after).any()):
                raise Broken(
                    expected=f"{after} keys stay", got=counts.tolist(), layer=layer, eviction_before_token=step
                )

    for_every_case(policy, holds, texts=2)


@check(POLICY_GROUP)
def one_pass_is_stepwise(policy: CheckedPolicy) -> None:
    """The engine's evictions and losses are those of a real cache, fed token by token.

    Guards against an `observe` that gives something else for many tokens at once than for one after the other, and
    against scores of a policy that reads "key" which depend on the other keys.
    """
    least = max(policy.policy.recent + getattr(policy.policy, "sinks", 0), policy.claims.sinks + policy.claims.recent)
    for more, keep_ratio in ((2, 0.5), (9, 0.25)):
        prune_after = int((least + 2) / keep_ratio) + more
        length = max(prune_after + 2 * more + 4, SHORTEST_TEXT)
        case = PolicyCase(length, prune_after, keep_ratio, seeds=(more,))
        trial = PolicyTrial(policy)
        try:
            same_both_ways(trial, case)
        except Broken as broken:
            raise trial.counterexample(broken) from None


@check(POLICY_GROUP, "declared_alone")
def reads_what_it_declares(policy: CheckedPolicy) -> None:
    """What it declares to read, and constants, are all that changes its scores.

    Guards against results that cannot be found again: a global that a script fills, or a tensor reached past `seen`,
    is no part of a policy's identity, and is not there when the evictions are played forward.
    """
    trial = PolicyTrial(policy)
    if outside := peeks(policy.policy):
        trial.cases.append(PolicyCase(6, 4))
        broken = Broken(
            expected="scores made of `seen`, of parameters and of constants", got=f"code that reads {outside[0]}"
        )
        raise trial.counterexample(broken)
    undeclared = {"key": ("queries", "values"), "cache": ("queries",)}.get(policy.policy.reads, ())

    def holds(trial: PolicyTrial, case: PolicyCase, other: str) -> None:
        before, changed = trial.survivors(case), trial.survivors(case.but(other=other))
        first = [{place: kept for place, kept in each.items() if place[0] == 0} for each in (before, changed)]
        same_survivors(first[0], first[1], changed=f"{other} of layer 0", declared=f"reads={policy.policy.reads!r}")

    if undeclared:
        for_every_case(policy, holds, other=st.sampled_from(undeclared))


def _noted(trial: PolicyTrial, case: PolicyCase, note: Any) -> Any:
    """Survivors; a promise that is broken within ``note`` comes out as it is."""
    broken: list[Broken] = []

    def noting(seen: Seen, scores: torch.Tensor) -> None:
        try:
            if isinstance(scores, torch.Tensor):
                note(seen, scores)
        except Broken as error:
            broken.append(error)

    survivors = trial.survivors(case, noting)
    if broken:
        raise broken[0]
    return survivors


def _stay(survivors: Any, sinks: int, recent: int, why: str) -> None:
    for (layer, step), positions in survivors.items():
        wanted = [*range(sinks), *range(step - recent, step)]
        for row, heads in enumerate(positions.tolist()):
            for head, kept in enumerate(heads):
                if missing := [token for token in wanted if token not in kept]:
                    raise Broken(
                        expected=f"tokens {wanted} stay, as {why}",
                        got=f"{missing} gone: {kept}",
                        layer=layer, eviction_before_token=step, row=row, head=head,
                    )  # fmt: skip
