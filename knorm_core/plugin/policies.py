"""A policy and what it must beat, on many texts: which policy the command line names, and the table of any."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from knorm_core.evaluation import Evaluation
from knorm_core.experiments.breadth import RATIOS
from knorm_core.experiments.controls import averaged, shown_change
from knorm_core.experiments.intervals import precision
from knorm_core.experiments.policy_controls import CONTROLS, UNCOMPRESSED, Controls, PolicyRow, every_row, table
from knorm_core.inputs.texts import Text
from knorm_core.plugin.inputs import LoadedModel, made_from
from knorm_core.policies import POLICIES
from knorm_core.policy import Policy
from knorm_core.policy_names import find_policy, policy_identity, policy_label
from knorm_core.report.policies import sentences
from knorm_core.results.interval import Interval
from knorm_core.results.records import ITSELF

_GIVEN = "given_policy"  # a test that asks for this fixture is about the policy of the command line


class PolicyTable(NamedTuple):
    """A policy beside its controls.

    Attributes:
        name: of the table, for golden files and the report.
        rows: as `knorm_core.experiments.policy_controls.table` makes them.
        made_from: the provenance.
    """

    name: str
    rows: list[dict[str, Any]]
    made_from: dict[str, Any]


@pytest.fixture(scope="session")
def given_policy(request: pytest.FixtureRequest) -> Policy:
    """The policy of --knorm-policy; without the option, tests that ask for it are left out."""
    return find_policy(request.config.getoption("knorm_policy")[-1])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the reproduction, --knorm-policy leaves what is about that policy: the rest is about others."""
    asked = config.getoption("knorm_policy")
    others = [item for item in items if _is_about_another(item, asked=bool(asked))]
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def _is_about_another(item: pytest.Item, *, asked: bool) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    if not asked:
        return _GIVEN in fixtures
    reproduces = any(True for _ in item.iter_markers("repro"))
    return reproduces and _GIVEN not in fixtures and "table_settings" not in fixtures


@pytest.fixture(scope="session")
def rows_on_many(breadth_of: Callable[..., Any]) -> Callable[..., dict[Any, list[Evaluation]]]:
    """``rows_on_many(text_set, count, rows)``: {row: an evaluation per text}; what policies share is computed once."""
    known: dict[tuple[str, int], dict[PolicyRow, Evaluation]] = {}

    def evaluations(text_set: str, count: int, rows: Sequence[PolicyRow]) -> dict[Any, list[Evaluation]]:
        for index in range(count):
            of_text = known.setdefault((text_set, index), {})
            if missing := [row for row in rows if row not in of_text]:  # at once, since they share phase 1
                computed = breadth_of(text_set, index, missing)
                of_text |= {row: averaged(by_seed) for row, by_seed in computed.items()}
        return {row: [known[text_set, index][row] for index in range(count)] for row in rows}

    return evaluations


@pytest.fixture
def policy_table(
    language_model: LoadedModel,
    single_precision: Any,
    rows_on_many: Callable[..., dict[Any, list[Evaluation]]],
    many_texts: Callable[[str], list[Text]],
    show_table: Callable[..., None],
) -> Callable[..., PolicyTable]:
    """``policy_table(text_set, policy, keep_ratios, controls, …)``: its table, shown at the end of the run.

    ``limit`` is the most texts that it takes, ``notes`` are sentences to print below it.
    """
    dtype = str(single_precision.dtype).removeprefix("torch.")

    def made(
        text_set: str,
        policy: Policy,
        keep_ratios: Sequence[float] = RATIOS,
        controls: Controls = CONTROLS,
        *,
        limit: int | None = None,
        notes: Iterable[str] = (),
    ) -> PolicyTable:
        texts, label = many_texts(text_set)[:limit], policy_label(policy)
        evaluations = rows_on_many(text_set, len(texts), every_row(policy, keep_ratios, controls))
        rows = table(policy, evaluations, keep_ratios, controls)
        compressed = {f"{row.keep_ratio}": each for row, each in evaluations.items() if row.policy is policy}
        show_table(
            f"{label} against what it must beat, {text_set} ({len(texts)} texts), {language_model.slug} in {dtype}",
            [as_read(label, row) for row in rows],
            *sentences(label, rows),
            precision(compressed, evaluations[UNCOMPRESSED]),
            "Against: perplexity of the policy over the control's, below 0 % the policy is better. All rows have the "
            "same protections and cache lengths; every text has its own prune_after (mean 256) and its own seeds.",
            *notes,
            last=True,
        )
        name = re.sub(r"[^\w.]+", "-", label).strip("-")
        source = made_from(
            language_model, texts, dtype=dtype, tokens=max(len(text.input_ids) for text in texts),
            # The suite's own policies change with the suite, and then the numbers say so.
            policy=label if type(policy) in POLICIES.values() else policy_identity(policy) or label,
        )  # fmt: skip
        return PolicyTable(f"{language_model.slug}/{text_set}/policy-{name}", rows, source)

    return made


def as_read(label: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as a person reads it."""
    own = row["control"] == ITSELF
    return {
        "keep ratio": str(row["keep_ratio"]),
        "which stay": label if own else row["control"],
        "sinks": row["sinks"],
        "recent": row["recent"],
        "PPL": row["ppl"],
        **shown_change(Interval.of(row, "ratio")),
        "against": "" if own else str(Interval.of(row, "against")),
        "mean cache": f"{row['mean_cache']:.1f}",
    }
