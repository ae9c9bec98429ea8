"""One pass equals a real cache, for every promised family and every policy: the long form of `test_methods_agree`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core import evaluate
from suites.core.questions import KEY_POLICIES, REPLAYED, UNROTATING, questions, text_for
from suites.core.test_methods_agree import assert_equal
from suites.families import PROMISED, tiny_model

pytestmark = pytest.mark.full


@pytest.mark.parametrize("family", PROMISED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_policy_and_family_agrees_with_a_real_cache(family, data):
    rotates = family not in ("gpt2", "opt", "gemma2", "gemma3")
    positions = ("absolute", "cache", "rerotated") if rotates else ("absolute", "cache")
    policies = KEY_POLICIES + REPLAYED + (UNROTATING if rotates or family == "gemma2" else ())
    question = questions(longest=97, policies=policies, positions=positions, by_layer="gemma" not in family)
    length, seed, arguments = data.draw(question)
    model, ids = tiny_model(family), text_for(arguments, length, seed)
    evaluation = evaluate(model, ids, **arguments)
    assert evaluation.method == "onepass"
    assert_equal(family, evaluation, evaluate(model, ids, method="stepwise", **arguments))
