"""The page's colours: Okabe and Ito's hues, as dark or as light as each theme's background asks for.

A figure is drawn in the light theme's colours; on the page each of them becomes the custom property of its
name, so that a theme changes figures and text together. No series differs by its colour alone.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#fcfcfa",
    "raised": "#f1f2ee",
    "ink": "#1c1f24",
    "muted": "#565d68",
    "rule": "#d5d8dc",
    "accent": "#0a58a3",
    "blue": "#0072b3",
    "vermillion": "#c24e00",
    "green": "#00795a",
    "purple": "#98487a",
    "amber": "#8f6400",
}

DARK = {
    "paper": "#15181d",
    "raised": "#20252c",
    "ink": "#e9ebee",
    "muted": "#a8b0bc",
    "rule": "#3a414b",
    "accent": "#84bbff",
    "blue": "#56b4e9",
    "vermillion": "#ff8a4a",
    "green": "#2fc79b",
    "purple": "#e09cc4",
    "amber": "#e5ab2e",
}

#: Names of the colours that tell series apart, each with a marker and a line of its own; the first three are
#: distinguishable by colour alone with any colour-vision deficiency.
SERIES = {
    "blue": ("o", "-"),
    "vermillion": ("s", "--"),
    "purple": ("^", "-."),
    "green": ("D", ":"),
    "amber": ("v", (0, (5, 1, 1, 1, 1, 1))),
}
