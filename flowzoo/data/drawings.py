"""A rose and a tree, drawn by formulas: ink 0 ... 1 of pixels (n, n), the first row on top."""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = math.pi * (3 - math.sqrt(5))  # petals turned by this angle never line up
_LINE = 1.3  # half the width of an outline with its soft edge, in pixels


def tree(size: int = 256, levels: int = 9) -> np.ndarray:
    """Draw a fractal tree: every branch carries two that are shorter, thinner and turned.

    Arguments:
        size: Pixels n in each direction.
        levels: Generations of branches, the trunk among them; the last are a pixel thin.
    """
    turns, shrinks, thins = np.radians([16.0, -22.0]), np.array([0.78, 0.77]), 0.7
    foot, angle = np.array([[0.48 * size, 0.03 * size]]), np.array([math.pi / 2])
    length, radius = np.array([0.22 * size]), 0.02 * size
    ink = np.zeros((size, size))
    for _ in range(levels):
        tip = foot + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        ink = np.maximum(
            ink, _strokes(size, foot, tip, max(radius, 0.45), max(thins * radius, 0.45))
        )
        foot = tip.repeat(2, 0)
        angle = (angle[:, None] + turns).ravel()
        length = (length[:, None] * shrinks).ravel()
        radius *= thins
    return ink[::-1]


def rose(size: int = 256, petals: int = 26) -> np.ndarray:
    """Draw a rose: a bent stem, two veined leaves, and petals laid on each other from outside in.

    Arguments:
        size: Pixels n in each direction.
        petals: Number of petals.
    """
    line = np.linspace(-4, 4, size)
    x, y = np.meshgrid(line, line)
    pixel = line[1] - line[0]
    t = np.linspace(0, 1, 41)
    stem = (np.stack([0.45 * np.sin(2.6 * t), 0.6 - 4.4 * t], 1) + 4) / pixel
    ink = 0.9 * _strokes(size, stem[:-1], stem[1:], 0.009 * size, 0.009 * size)
    for foot, angle in (((0.44, -2.35), 0.55), ((0.36, -2.9), 2.55)):
        along = (x - foot[0]) * math.cos(angle) + (y - foot[1]) * math.sin(angle)
        aside = (y - foot[1]) * math.cos(angle) - (x - foot[0]) * math.sin(angle)
        ink = _leaf(ink, along / 2.2, aside / 2.2, pixel / 2.2)
    for k in range(petals):
        ink = _petal(ink, x, y - 1.15, 1 - k / petals, 0.5 + k * _GOLDEN, pixel)
    return ink[::-1]


def _petal(
    ink: np.ndarray, x: np.ndarray, y: np.ndarray, out: float, turn: float, pixel: float
) -> np.ndarray:
    """Lay a petal on the ink: light at its tip, dark at its foot, with a rim and a shadow.

    Arguments:
        ink: What is drawn so far (n, n).
        x: Abscissae (n, n), the middle of the flower at 0.
        y: Ordinates (n, n).
        out: How far out it is, from 0 in the middle to 1; the size goes with it.
        turn: Its direction, as an angle.
        pixel: Width of a pixel.
    """
    radius, distance = 0.21 + 1.09 * out, 1.35 * out
    u, v = x - distance * math.cos(turn), y - distance * math.sin(turn)
    angle = np.arctan2(v, u) - turn
    edge = radius * (1 + 0.05 * np.cos(3 * angle) + 0.03 * np.cos(5 * angle))
    inside = edge - np.hypot(u, v)
    tip = (u * math.cos(turn) + v * math.sin(turn)) / radius
    shadow = 0.5 * np.exp(np.minimum(inside, 0) / 0.12) * (np.hypot(x, y) < 2.6) * (ink > 0)
    shade = 0.04 + 0.5 * np.clip((0.75 - tip) / 1.75, 0, 1) ** 2
    ink = _filled(np.maximum(ink, shadow), shade, inside / pixel)
    return np.maximum(ink, 0.95 * np.clip(_LINE - np.abs(inside) / pixel, 0, 1))


def _leaf(ink: np.ndarray, along: np.ndarray, aside: np.ndarray, pixel: float) -> np.ndarray:
    """Lay a leaf on the ink, in coordinates in which it reaches from 0 to 1 along its midrib."""
    inside = 0.3 * np.sin(math.pi * np.clip(along, 0, 1) ** 0.8) - np.abs(aside)
    inside = np.where((along > 0) & (along < 1), inside, -1.0)
    ribs = 0.14  # apart, and bent towards the tip
    rib = ribs * np.abs((along - 0.8 * np.abs(aside)) / ribs % 1 - 0.5)
    vein = np.clip(_LINE - np.minimum(np.abs(aside), 0.78 * rib) / pixel, 0, 1)
    ink = _filled(ink, np.maximum(0.2, 0.8 * vein), inside / pixel)
    return np.maximum(ink, np.clip(_LINE - np.abs(inside) / pixel, 0, 1))


def _filled(ink: np.ndarray, paint: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cover the ink by paint where `inside`, the distance to the edge in pixels, is positive."""
    cover = np.clip(inside + 0.5, 0, 1)
    return ink + cover * (paint - ink)


def _strokes(
    size: int, start: np.ndarray, end: np.ndarray, first: float, last: float
) -> np.ndarray:
    """Draw straight strokes with round ends and soft edges.

    Arguments:
        size: Pixels n in each direction.
        start: Starts (m, 2) in pixels, abscissa first.
        end: Ends (m, 2).
        first: Half the width at the start, in pixels.
        last: Half the width at the end.

    Returns:
        Ink (n, n), the first row at ordinate 0.
    """
    span = end - start
    # every stroke is drawn in a square of its own, large enough for the longest
    side = math.ceil(np.hypot(*span.T).max() + 2 * max(first, last)) + 3
    corner = np.floor((start + end) / 2 - side / 2).astype(int)[:, :, None]
    column, row = np.moveaxis(corner + np.arange(side), 1, 0)
    column, row = np.broadcast_arrays(column[:, None, :], row[:, :, None])
    u, v = column - start[:, 0, None, None], row - start[:, 1, None, None]
    a, b = span[:, 0, None, None], span[:, 1, None, None]
    t = np.clip((u * a + v * b) / (a**2 + b**2), 0, 1)
    cover = np.clip(first + t * (last - first) - np.hypot(u - t * a, v - t * b) + 0.5, 0, 1)
    seen = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < size)
    ink = np.zeros((size, size))
    np.maximum.at(ink, (row[seen], column[seen]), cover[seen])
    return ink
