"""What a repository's suites need and the package itself does not: refused in a sentence where it is missing."""

from importlib.util import find_spec

import pytest

_MISSING = [name for name in ("pytest_regressions", "syrupy") if find_spec(name) is None]
if _MISSING:
    raise pytest.UsageError(
        f"knorm_core.plugin needs {' and '.join(name.replace('_', '-') for name in _MISSING)}, not installed here: "
        f"pip install 'knorm[suite]'"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a run in which those two are installed and not loaded."""
    for plugin, option in (("pytest-regressions", "force_regen"), ("syrupy", "update_snapshots")):
        if not hasattr(config.option, option):
            raise pytest.UsageError(
                f"knorm_core.plugin needs the plugin {plugin}, which is not loaded in this run: load it with -p, or "
                f"leave out what blocks it (-p no:…, PYTEST_DISABLE_PLUGIN_AUTOLOAD)"
            )
