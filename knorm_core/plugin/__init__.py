"""pytest: each option beside the fixture that reads it; golden files; the terminal.

A repository that wants them names them in its conftest: ``pytest_plugins = ["knorm_core.plugin"]``.
"""

pytest_plugins = [
    "knorm_core.plugin.options",
    "knorm_core.plugin.tables",
    "knorm_core.plugin.recorder",
    "knorm_core.plugin.golden",
    "knorm_core.plugin.inputs",
    "knorm_core.plugin.stored",
]
