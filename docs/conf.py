"""The documentation's Sphinx configuration: ``tox -e docs`` builds it, with every warning an error."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_ext")]

project = "knorm"
author = "the authors of knorm"
project_copyright = "Apache-2.0"
version = release = version_of("knorm")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "knorm_pages",
]
exclude_patterns = ["_*"]
nitpicky = False
default_role = "py:obj"  # docstrings name functions in single backticks

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 70  # then each argument has a line of its own
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "knorm"
html_static_path = ["_static"]
html_css_files = ["knorm.css"]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files on disk
