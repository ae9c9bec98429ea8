"""Drawings as SVG that is part of the page: matplotlib draws, the page's theme colours, the page's font sets.

Text stays text, so it can be searched, read aloud and set in the reader's font; it is never read as mathematics,
and whatever it holds is escaped by matplotlib and once more by the writer of XML here.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from knorm_core.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.5  # inches; 324 of the drawing's units, which is about a phone's width in CSS pixels

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "knorm",  # the same drawing gives the same ids
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # what matplotlib brings: widths do not depend on the machine
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.8,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)
_NAMES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
# What XML cannot hold, in figures as elsewhere shown as a replacement character.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff￾￿]")


def draw(name: str, plot: Callable[[Axes], None], *, alt: str, height: float = 3.1, width: float = WIDTH) -> Markup:
    """One drawing as an ``<svg role="img">`` to stand in a page.

    Args:
        name: unique within the page; prefixes the ids that the drawing refers to.
        plot: draws on the axes that it is given.
        alt: what the drawing shows, in words, for who cannot see it.
        height, width: in inches of 72 units.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        # A name in a script that DejaVu Sans lacks, a number that is none: the page is to be made all the same.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        plot(axes)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _inlined(file.getvalue(), name, alt)


def plain(text: object) -> str:
    """Text that a drawing can hold: control characters and lone surrogates replaced, lines joined."""
    return " ".join(_UNPRINTABLE.sub("\ufffd", str(text)).split())


def short(text: object, most: int = 30) -> str:
    """The same, cut to what a drawing has room for."""
    whole = plain(text)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def _inlined(svg: str, prefix: str, alt: str) -> Markup:
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")]:
            parent.remove(child)
    referred: set[str] = set()
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute == f"{{{_XLINK}}}href":
                referred.add(value.removeprefix("#"))
            referred.update(_REFERENCE.findall(value))
    for element in root.iter():
        _rename(element.attrib, prefix, referred)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": plain(alt)}
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _rename(attributes: dict[str, Any], prefix: str, referred: set[str]) -> None:
    """Ids that nothing refers to go, the others become the page's; colours become the theme's."""
    for attribute, value in list(attributes.items()):
        if attribute == "id":
            if value in referred:
                attributes["id"] = f"{prefix}-{value}"
            else:
                del attributes["id"]
        elif attribute == f"{{{_XLINK}}}href" and value.startswith("#"):
            attributes[attribute] = f"#{prefix}-{value[1:]}"
        elif attribute in ("style", "clip-path", "fill", "stroke"):
            value = _REFERENCE.sub(lambda match: f"url(#{prefix}-{match[1]})", value)
            attributes[attribute] = re.sub("#[0-9a-f]{6}", lambda match: _NAMES.get(match[0], match[0]), value)
