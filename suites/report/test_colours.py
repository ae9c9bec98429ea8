"""Colours: readable in both themes, and told apart by who sees fewer of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from knorm_core.report.palette import DARK, LIGHT, SERIES

pytestmark = pytest.mark.fast

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """WCAG 2's contrast ratio."""
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@THEMES
def test_text_reads_and_marks_are_seen(theme):
    for background in ("paper", "raised"):
        for text in ("ink", "muted", "accent"):
            assert contrast(theme[text], theme[background]) >= 4.5, (text, background)
    for mark in SERIES:
        assert contrast(theme[mark], theme["paper"]) >= 4.5, mark  # verdicts' marks are text


@THEMES
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_first_three_series_are_told_apart_by_colour_and_all_by_marker_and_line(theme, deficiency):
    seen = {name: lab(np.array(DEFICIENCIES[deficiency]) @ linear(theme[name])) for name in list(SERIES)[:3]}
    for first, second in combinations(seen, 2):
        assert np.linalg.norm(seen[first] - seen[second]) > 15, (first, second)
    assert (
        len({marker for marker, _ in SERIES.values()}) == len({str(line) for _, line in SERIES.values()}) == len(SERIES)
    )


def test_both_themes_have_the_same_names():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT), "a drawing's colours become names"
