"""What a table is against its baseline: a function of both tables and of what they were made from, nothing else."""

from __future__ import annotations

import math

import pytest

from knorm_core.plugin.baseline import Stored, as_stored, as_table, decide, not_numbers

pytestmark = pytest.mark.fast

VERSIONS = {"versions": {"torch": "2.6"}}
MADE = {"model": "m sha256:1", "text": "sha256:2", "settings": {"lengths": [1, 2]}, **VERSIONS}
ROWS = [
    {"keep": 1.0, "ppl": 12.5, "ppl_low": 12.0, "evictions": 0},
    {"keep": 0.5, "ppl": 20.0, "ppl_low": 19.0, "evictions": 7},
]


def table(**changed):
    """The table, with cells of its second row changed; None takes a column away."""
    rows = [{name: value for name, value in row.items() if changed.get(name, 0) is not None} for row in ROWS]
    rows[1] |= {name: value for name, value in changed.items() if value is not None}
    return as_stored(as_table("m/t/ppl", rows, ["keep"]))


OLD = Stored(table(), MADE)


def test_the_same_table_from_the_same_things_is_the_same():
    decision = decide(OLD, table(), MADE)
    assert (decision.status, decision.reasons, decision.cells, decision.same_numbers) == ("same", (), (), True)


def test_a_provenance_written_with_tuples_is_the_one_that_yaml_gives_back():
    assert decide(OLD, table(), MADE | {"settings": {"lengths": (1, 2)}}).status == "same"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"ppl": 20 * (1 + 0.9e-6)}, "same"),
        ({"ppl": 20 * (1 + 1.1e-6)}, "changed"),
        ({"ppl_low": 19 * (1 + 9e-6)}, "same"),
        ({"ppl_low": 19 * (1 + 11e-6)}, "changed"),
        ({"evictions": 8}, "changed"),
        ({"ppl": math.nan}, "changed"),
        ({"ppl": math.inf}, "changed"),
        ({"ppl": "20.0"}, "same"),
        ({"ppl": "twenty"}, "changed"),
    ],
)
def test_numbers_may_move_by_the_tolerance_limits_by_ten_times_that_and_integers_not_at_all(changed, status):
    decision = decide(OLD, table(**changed), MADE, rtol=1e-6)
    assert decision.status == status
    assert decision.same_numbers == (status == "same")
    assert bool(decision.reasons) == (status == "changed")


def test_an_infinity_that_stays_is_the_same_and_the_one_that_becomes_a_number_is_not():
    infinite = Stored(table(ppl=math.inf), MADE)
    assert decide(infinite, table(ppl=math.inf), MADE).status == "same"
    assert decide(infinite, table(ppl=2.0), MADE).reasons == ("0.5, ppl: inf -> 2.0",)


def test_another_source_says_which_and_is_no_matter_of_numbers():
    decision = decide(OLD, table(ppl=99.0), MADE | {"text": "sha256:3"})
    assert (decision.status, decision.reasons) == ("other source", ("text: sha256:2 -> sha256:3",))
    assert not decision.same_numbers
    without = {name: value for name, value in MADE.items() if name != "text"}
    assert decide(OLD, table(), without).reasons == ("text: sha256:2 -> None",)


def test_other_versions_alone_change_nothing_and_are_known():
    decision = decide(OLD, table(), MADE | {"versions": {"torch": "2.13"}})
    assert (decision.status, decision.other_versions) == ("same", ("torch: 2.6 -> 2.13",))


def test_another_shape_names_the_columns_and_rows():
    decision = decide(OLD, table(ppl=None, loss=1.0), MADE)
    assert decision.status == "changed"
    assert decision.other_shape
    assert decision.reasons == ("columns that are gone: ppl", "columns that are new: loss")


def test_what_is_absent_or_damaged_is_compared_with_nothing():
    assert decide(None, table(), MADE).status == "missing"
    assert decide(Stored(None, MADE), table(), MADE).reasons == ("table",)
    assert decide(Stored(table(), None), table(), MADE).reasons == ("provenance",)


def test_two_rows_of_one_label_are_refused_by_name():
    with pytest.raises(ValueError, match=r"m/t/ppl: two rows have the label '0.5'; key=\['keep'\]"):
        as_table("m/t/ppl", [ROWS[1], ROWS[1]], ["keep"])


def test_cells_that_are_no_number_are_named():
    assert not_numbers(table(ppl=math.nan, evictions=math.inf)) == ["row 0.5, column ppl"]
