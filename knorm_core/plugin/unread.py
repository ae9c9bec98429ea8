"""Which of this plugin's options no test of a run reads; `knorm_core.contract.plugin` says so at the end."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from knorm_core.contract.plugin import add_unread, of_the_contract
from knorm_core.plugin.texts import reads, text_sets

#: The fixtures that read an option, to which a conftest may add its own; of what every run reads nothing is said, and
#: --knorm-text is read by the tests of its texts.
READERS: dict[str, tuple[str, ...]] = {
    "--knorm-model": ("language_model",),
    "--knorm-dtype": ("language_model",),
    "--knorm-device": ("language_model",),
    "--knorm-bos": ("texts_of",),
    "--knorm-text": (),
    "--knorm-text-dir": ("texts_of",),
    "--knorm-keep-ratios": ("table_settings",),
    "--knorm-prune-after": ("table_settings",),
    "--knorm-max-eval-tokens": ("table_settings",),
    "--knorm-positions": ("table_settings", "position_mode"),
    "--knorm-policy": ("table_settings", "given_policy", "checked_policy"),
    "--knorm-breadth": ("many_texts",),
    "--knorm-baselines": ("golden", "text_snapshot"),
    "--knorm-missing-baseline": ("golden",),
    "--knorm-store": ("result_store",),
    "--knorm-scheduler": ("run_all",),
    "--knorm-claims": ("golden", "record_table"),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    add_unread(session.config, unread(session.items, text_sets(session.config)))


def unread(items: Iterable[pytest.Item], texts: Iterable[str]) -> list[str]:
    """The options that none of the tests reads."""
    items, named = list(items), set(texts)
    fixtures = {name for item in items for name in getattr(item, "fixturenames", ())}
    options = [option for option, readers in READERS.items() if readers and fixtures.isdisjoint(readers)]
    if "--knorm-policy" in options and any(map(of_the_contract, items)):
        options.remove("--knorm-policy")
    if not any(reads(item, named) or named & _parameters(item) for item in items):
        options.append("--knorm-text")
    return options


def _parameters(item: pytest.Item) -> set[str]:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in values if isinstance(value, str)}
