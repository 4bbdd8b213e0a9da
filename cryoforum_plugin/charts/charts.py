"""What a figure shows, whatever draws it; a chart holds curves and counts, never one value a particle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryoforum_plugin.particles import FloatArray, IntArray

# Okabe & Ito, "Color universal design" (2008)
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
GREY = "#666666"
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dashdot", "dotted")  # a second way to tell lines apart

Dash = Literal["solid", "dashed", "dashdot", "dotted"]


@dataclass(frozen=True)
class Axis:
    """Label with its unit, and scale. reciprocal : values are frequencies, shown as 1/resolution."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    reciprocal: bool = False


@dataclass(frozen=True)
class Line:
    """Values `(n,)` at places `(n,)`; nan leaves a gap. points : each value is marked."""

    name: str
    x: FloatArray
    y: FloatArray
    points: bool = False


@dataclass(frozen=True)
class Mark:
    """A thin straight line at x = value, y = value, or where y = x.

    moves : name of the values that it goes through when a reader moves a slider, "" where it stays.
    """

    along: Literal["x", "y", "diagonal"]
    value: float = 0.0
    label: str = ""
    moves: str = ""


@dataclass(frozen=True)
class LineChart:
    """Curves, told apart by colour and dashes."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts `(bins,)` of each named set between edges `(bins + 1,)`: the first filled, others as outlines."""

    title: str
    x: Axis
    y: Axis
    edges: FloatArray
    counts: Mapping[str, IntArray]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class DirectionMap:
    """Values `(cos tilt, rot)` in cells of equal area, rising along both axes. highest : end of the colours."""

    title: str
    values: FloatArray
    label: str
    highest: float


@dataclass(frozen=True)
class DirectionSpots:
    """Values `(n,)` at single directions; the area of a spot goes with its `count` `(n,)` of particles."""

    title: str
    rot_deg: FloatArray
    tilt_deg: FloatArray
    values: FloatArray
    count: IntArray
    label: str


@dataclass(frozen=True)
class ImagePairs:
    """Rows of images `(n, size, size)`, each above what it should look like, `(n, size, size)`, with a caption."""

    title: str
    rows: tuple[str, ...]
    images: FloatArray
    expected: FloatArray
    captions: tuple[str, ...]


Chart = LineChart | Histogram | DirectionMap | DirectionSpots | ImagePairs
