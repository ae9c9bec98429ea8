"""The head of every promised family can be run on its own, so that logits of a long text need not exist at once."""

from __future__ import annotations

import pytest

from knorm_core import evaluate
from knorm_core.methods import onepass
from suites.core.test_methods_agree import assert_equal
from suites.families import PROMISED, random_ids, tiny_model

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("family", PROMISED)
def test_logits_may_be_made_in_parts(family, monkeypatch):
    model, ids = tiny_model(family), random_ids(100)
    whole = evaluate(model, ids, keep_ratio=0.5, prune_after=40)
    counted = []
    nll = onepass.token_nll
    monkeypatch.setattr(onepass, "token_nll", lambda logits, wanted: counted.append(len(wanted)) or nll(logits, wanted))
    monkeypatch.setattr(onepass, "LOGITS_AT_ONCE", 25)
    in_parts = evaluate(model, ids, keep_ratio=0.5, prune_after=40)
    assert counted == [25, 25, 9]
    assert_equal(family, in_parts, whole)
