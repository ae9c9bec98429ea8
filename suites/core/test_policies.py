"""Policies: what they are called, what they may look at, what makes two of them the same, and who survives."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import knorm_core.policies
from knorm_core.counts import Eviction
from knorm_core.methods.replay import replayed_deaths
from knorm_core.policies import H2O, POLICIES, TOVA, KeyDiff, LowNorm, Newest, Random, SnapKV
from knorm_core.policy import Policy, PolicyError, key_scores
from knorm_core.policy_names import find_policy, policy_identity, policy_label
from knorm_core.selection import UNPROTECTED, Protection, survivors
from suites.core import own_policies

# --- names


@pytest.mark.fast
def test_the_folder_is_the_list_of_policies():
    files = {path.stem for path in Path(knorm_core.policies.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(POLICIES) == files
    assert all(isinstance(find_policy(name), kind) for name, kind in POLICIES.items())
    for kind in set(POLICIES.values()) - {POLICIES[name] for name in ("high_norm", "random", "low_norm_exact")}:
        assert "arXiv" in sys.modules[kind.__module__].__doc__, f"{kind} does not name its paper"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("newest", Newest()),
        (SnapKV(window=8), SnapKV(window=8)),
        ("suites.core.own_policies:HALF", own_policies.Weighted(0.5)),
        ("knorm_core.policies.tova:TOVA", TOVA()),
    ],
)
@pytest.mark.fast
def test_a_policy_is_meant_by_name_by_instance_or_by_import(policy, expected):
    assert find_policy(policy) == expected


@pytest.mark.fast
def test_a_seed_goes_to_a_named_policy_that_has_one():
    assert find_policy("random", seed=3) == Random(seed=3)
    assert find_policy("low_norm", seed=3) == LowNorm()
    with pytest.raises(ValueError, match=r"^seed=3 goes with a policy that is given by name; policy=Random\(seed=1\)"):
        find_policy(Random(seed=1), seed=3)


class Peeks(Policy):
    reads = "keys"

    def score(self, seen):
        return seen.keys


class Empty(Policy):
    reads = "cache"


class Remembers(Policy):
    def score(self, seen):
        return seen.state

    def observe(self, state, seen):
        return state


class Windowless(TOVA):
    query_window = 0


@dataclass
class Thawed(Policy):
    weight: float = 1.0

    def score(self, seen):
        return self.weight * seen.positions


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ("recent", ValueError, "policy='recent' is called 'newest' now"),
        ("sink_recent", ValueError, "policy='sink_recent' is policy='newest' with sinks=4 now"),
        ("low", ValueError, "policy='low' is not one of 'low_norm', .*'q_filters', nor 'package.module:Name'"),
        ("nowhere.at_all:X", ValueError, "policy='nowhere.at_all:X' cannot be imported: No module named 'nowhere'"),
        ("suites.core.own_policies:X", ValueError, ".*cannot be imported: suites.core.own_policies has no X"),
        ("suites.core.own_policies:Weighted", TypeError, "needs arguments .*weight.*: give an instance"),
        ("suites.core.own_policies:Fails", ValueError, ".*Fails' cannot be made: TypeError: unsupported operand"),
        ("suites.core.own_policies:NOT_A_POLICY", TypeError, "is not a policy: give one of 'low_norm'"),
        (TOVA, TypeError, r"policy=TOVA is a class: give an instance, TOVA\(\)"),
        (3, TypeError, "policy=3 is not a policy"),
        (
            Peeks(),
            PolicyError,
            r"policy Peeks\(\) declares reads='keys': expected one of 'key', 'cache', 'queries', 'att",
        ),
        (Empty(), PolicyError, r"policy Empty\(\) has no score\(self, seen\)"),
        (Remembers(), PolicyError, r"policy Remembers\(\) has observe and declares reads='key'"),
        (Thawed(), TypeError, r"policy Thawed\(weight=1.0\) cannot be hashed .*: make it a frozen dataclass"),
        (Windowless(), ValueError, r"query_window of policy Windowless\(\)=0 is below 1"),
    ],
)
@pytest.mark.fast
def test_what_is_no_policy_is_refused_in_one_sentence(policy, error, message):
    with pytest.raises(error, match=f"^{message}" if error is not TypeError else message) as raised:
        find_policy(policy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("arguments", [{"window": 0}, {"kernel": 4}, {"kernel": 0}])
@pytest.mark.fast
def test_snapkv_refuses_windows_and_kernels_that_have_no_meaning(arguments):
    with pytest.raises(ValueError, match=r"^(window|kernel)="):
        SnapKV(**arguments)


@pytest.mark.fast
def test_labels_are_names_and_what_differs_from_the_defaults():
    assert policy_label(SnapKV()) == "snapkv"
    assert policy_label(SnapKV(window=8)) == "snapkv(window=8, kernel=5)"
    assert policy_label(own_policies.TOVA()) == "TOVA"
    assert policy_label(own_policies.Plain(2.0)) == "Plain(weight=2.0)"


# --- identity


@pytest.mark.full
def test_an_identity_is_the_same_in_another_process():
    policies = ["tova", "snapkv", "suites.core.own_policies:HALF", "suites.core.own_policies:Plain"]
    ours = [policy_identity(find_policy(name)) for name in policies]
    script = (
        "from knorm_core.policy_names import find_policy, policy_identity\n"
        f"for name in {policies!r}: print(policy_identity(find_policy(name)))"
    )
    theirs = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert theirs.stdout.splitlines() == ours
    assert len(set(ours)) == 4


@pytest.mark.fast
def test_an_identity_has_the_source_and_the_parameters(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(own_policies.__file__).read_text(encoding="utf-8")
    identities = []
    for name, text in [("once_a", source), ("once_b", source + "\n"), ("once_c", source)]:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        identities.append(policy_identity(find_policy(f"{name}:HALF")))
    names, hashes, parameters = zip(*(identity.split(" ", 2) for identity in identities), strict=True)
    assert names == ("once_a:Weighted", "once_b:Weighted", "once_c:Weighted")
    assert hashes[0] == hashes[2] != hashes[1]
    assert set(parameters) == {'{"weight": 0.5}'}
    assert policy_identity(own_policies.Weighted(0.25)) != policy_identity(own_policies.HALF)


@pytest.mark.fast
def test_a_policy_that_cannot_be_had_elsewhere_has_no_identity():
    @dataclass(frozen=True)
    class Closure(Policy):
        def score(self, seen):
            return seen.positions

    assert policy_identity(Closure()) is None
    assert policy_identity(own_policies.Plain(weight=lambda: 1)) is None
    assert policy_identity(own_policies.Plain(weight=float("nan"))) is None


# --- what it sees, and what it may return


def replay(policy, batch=1, protection=UNPROTECTED):
    query = torch.randn(batch, 4, 20, 4, generator=torch.Generator().manual_seed(0))
    key, value = query[:, :2].clone(), query[:, 2:].clone()
    schedule = [Eviction(10, 10, 6), Eviction(14, 10, 6)]
    return replayed_deaths(policy, query, key, value, schedule, layer=7, protection=protection)


def scoring(make, reads="attention"):
    kind = type("Own", (Policy,), {"reads": reads, "score": lambda self, seen: make(seen)})
    return kind()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda seen: seen.keys, r"returned scores of shape \(1, 2, 10, 4\) in layer 7; expected what broadcasts to "),
        (lambda seen: torch.zeros(3), r"shape \(3,\) in layer 7; .*\(rows, kv_heads, alive\) = \(1, 2, 10\)"),
        (lambda seen: 3.0, "returned a float in layer 7; expected a tensor"),
        (
            lambda seen: seen.attention[:, :, 0] * torch.nan,
            "returned NaN in layer 7; expected scores that can be ranked",
        ),
        (
            lambda seen: torch.zeros(10, device="meta"),
            "returned scores on meta in layer 7; expected the keys' device, cpu",
        ),
        (lambda seen: seen.keys[..., 0] > 0, "returned scores of torch.bool in layer 7; expected real numbers"),
        (lambda seen: seen.received[:, :, 0, 0], "seen.received in layer 7, which only observe sees"),
    ],
)
@pytest.mark.fast
def test_scores_that_cannot_be_are_refused_in_one_sentence(make, message):
    with pytest.raises(PolicyError, match=message) as raised:
        replay(scoring(make))
    assert str(raised.value).startswith("policy Own()")
    assert "\n" not in str(raised.value)


@pytest.mark.fast
def test_one_nan_in_the_last_eviction_is_not_overlooked():
    def make(seen):
        scores = seen.positions.double()
        return scores.where(scores != 13, torch.nan)

    with pytest.raises(PolicyError, match="returned NaN in layer 7"):
        replay(scoring(make), protection=Protection(recent=1))


@pytest.mark.fast
def test_a_state_of_another_shape_is_refused():
    class Own(Policy):
        reads = "attention"

        def observe(self, state, seen):
            return state[..., :-1]

    with pytest.raises(PolicyError, match=r"returned a state of shape \(1, 2, 9\) from observe in layer 7; expected"):
        replay(Own())


SEES = {"key": {"keys", "positions"}}
SEES["cache"] = SEES["key"] | {"values", "fed", "kept", "state"}
SEES["queries"] = SEES["cache"] | {"queries", "query_attention", "scale"}
SEES["attention"] = SEES["queries"] | {"attention"}


@pytest.mark.parametrize("reads", ["key", "cache", "queries", "attention"])
@pytest.mark.fast
def test_a_policy_sees_what_it_declares_and_nothing_else(reads):
    seen_by_it = set()

    def make(seen):
        assert seen.layer == 7
        for name in SEES["attention"]:
            if name in SEES[reads]:
                assert getattr(seen, name) is not None
                seen_by_it.add(name)
            else:
                with pytest.raises(PolicyError, match=rf"looks at seen.{name} in layer 7 and declares reads='{reads}'"):
                    getattr(seen, name)
        return torch.zeros(1)

    policy = scoring(make, reads)
    if reads == "key":
        key_scores(policy, torch.randn(1, 2, 5, 4), torch.arange(5), layer=7)
    else:
        replay(policy)
    assert seen_by_it == SEES[reads]


@pytest.mark.fast
def test_everything_seen_has_the_shape_that_is_documented():
    shapes = []

    class Own(Policy):
        reads = "attention"
        query_window = 3

        def observe(self, state, seen):
            shapes.append(("observe", tuple(state.shape), tuple(seen.received.shape)))
            torch.testing.assert_close(seen.received.sum(-1), torch.ones(seen.received.shape[:-1]))
            return state

        def score(self, seen):
            assert seen.fed in (10, 14)
            assert (seen.kept, seen.scale) == (6, 0.5)
            shapes.append(
                {name: tuple(getattr(seen, name).shape) for name in SEES["attention"] - {"fed", "kept", "scale"}}
            )
            # Nothing died among the latest three, so the recomputed attention of the latest is the attention.
            torch.testing.assert_close(seen.query_attention[..., -1, :], seen.attention)
            assert seen.positions[..., -3:].tolist() == [[[seen.fed - 3, seen.fed - 2, seen.fed - 1]] * 2] * 3
            return seen.positions

    replay(Own(), batch=3)
    at_an_eviction = {
        "keys": (3, 2, 10, 4),
        "values": (3, 2, 10, 4),
        "positions": (3, 2, 10),
        "state": (3, 2, 10),
        "queries": (3, 2, 2, 3, 4),
        "query_attention": (3, 2, 2, 3, 10),
        "attention": (3, 2, 2, 10),
    }
    assert shapes == [
        ("observe", (3, 2, 10), (3, 2, 2, 10, 10)),
        at_an_eviction,
        ("observe", (3, 2, 10), (3, 2, 2, 4, 10)),
        at_an_eviction,
    ]


# --- who survives


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.data())
@pytest.mark.fast
def test_survivors_are_the_protected_and_the_highest_of_the_others(scores, data):
    length = len(scores)
    kept = data.draw(st.integers(0, length))
    sinks = data.draw(st.integers(0, kept))
    recent = data.draw(st.integers(0, kept - sinks))
    if kept == length:
        sinks = recent = 0
    free = sorted(range(sinks, length - recent), key=lambda i: (-scores[i], i))
    expected = sorted([*range(sinks), *free[: kept - sinks - recent], *range(length - recent, length)])
    for dtype in (torch.int64, torch.float64):
        index = survivors(torch.tensor([scores, scores], dtype=dtype), kept, Protection(sinks, recent))
        assert index.tolist() == [expected, expected]


@pytest.mark.fast
def test_a_protected_key_stays_beside_a_score_of_infinity():
    scores = torch.tensor([-torch.inf, 1.0, torch.inf, torch.inf, 0.0])
    assert survivors(scores, 2, Protection(1, 1)).tolist() == [0, 4]
    assert survivors(scores, 4, Protection(1, 1)).tolist() == [0, 2, 3, 4]


@pytest.mark.fast
def test_snapkv_pools_the_mean_over_its_window():
    seen = type("Seen", (), {})()
    attention = torch.tensor([[0.1, 0.0, 0.6, 0.0, 0.3, 0.0], [0.3, 0.0, 0.0, 0.2, 0.0, 0.5]])
    seen.query_attention = attention.view(1, 1, 1, 2, 6)
    scores = SnapKV(window=2, kernel=3).score(seen)
    expected = torch.tensor([0.2 / 3, 0.5 / 3, 0.4 / 3, 0.4 / 3, torch.inf, torch.inf])  # of 0.2, 0, 0.3, 0.1
    torch.testing.assert_close(scores, expected.view(1, 1, 6))


@pytest.mark.fast
def test_keydiff_prefers_the_key_that_points_elsewhere():
    seen = type("Seen", (), {"keys": torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]).view(1, 1, 3, 2)})()
    [[[first, second, other]]] = KeyDiff().score(seen).tolist()
    assert first == second == pytest.approx(-2 / 5**0.5)  # the anchor is (2, 1) / 3
    assert other == pytest.approx(-1 / 5**0.5)


@pytest.mark.fast
def test_h2o_adds_what_is_received_and_averages_the_group():
    seen = type(
        "Seen", (), {"received": torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]])[None, None]}
    )()
    assert H2O().observe(torch.tensor([[[1.0, 0.0]]]), seen).flatten().tolist() == pytest.approx([2.3, 0.7])
