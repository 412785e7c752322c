"""Charts as inline SVG: bars, histogram, curve, scatter, confusion.

Contract: pure functions from numbers to one well-formed ``<svg>`` element, the same bytes for the same input. Every
text is escaped here, so a hostile name stays text. Nothing is loaded from outside. Text is laid out by an estimate of
its width; nothing measures it.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

PALETTE = (  # noqa: SIM905 - four lines, not forty
    "#0072b2 #d55e00 #009e73 #cc79a7 #56b4e9 #e69f00 #6a3d9a #8c2d04 #30de97 #1e4252 "
    "#a264f6 #116e56 #3548d1 #86b37d #826b87 #421c8d #c8a5bb #632532 #b6303e #898ee7 "
    "#574c6a #b3ca65 #838542 #6463d4 #2fd4ec #b334ad #b79420 #242bb6 #610372 #e05860 "
    "#a474c7 #914a8c #3a9da2 #be3d70 #e58b55 #5e402f #e875c6 #9ec9b9 #8fd718 #825023"
).split()
"""40 colours: six of Okabe and Ito's and two dark ones, then always the one farthest from those before it (in OKLab, to
the normal, the deuteranope and the protanope eye)."""

OTHER = "#a7afb9"
"""What comes after the 40."""

INK, MUTED, LINE, DEEP = "#1c2430", "#5b6675", "#e3e7ec", (8, 81, 156)

_WIDTH = 960
_CHAR = 6.7  # average advance of the 12 px text, in px
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def label(value: object, longest: int | None = None) -> Markup:
    """Escape ``value`` and replace what XML forbids; longer than ``longest`` it ends in an ellipsis."""
    text = _ILLEGAL.sub("\ufffd", str(value))
    return escape(text if longest is None or len(text) <= longest else text[: longest - 1].rstrip() + "…")


def bars(
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[float]]],
    *,
    title: str,
    text: Callable[[float], str] = "{:,.0f}".format,
) -> Markup:
    """Horizontal bars, one group a name.

    Parameters
    ----------
    names
        Names of the groups, from top to bottom.
    series
        (name, colour, values) of each bar of a group; values are non-negative, one a group. Several get a legend.
    title
        What the chart shows, for those who cannot see it.
    text
        Writes a value at the end of its bar.
    """
    left = 16 + _CHAR * min(44, max((len(name) for name in names), default=0))
    room = (
        _WIDTH - left - 14 - _CHAR * max((len(text(value)) for _, _, values in series for value in values), default=0)
    )
    largest = max((value for _, _, values in series for value in values), default=0) or 1
    top = 26 if len(series) > 1 else 4
    thick = 11 if len(series) > 1 else 14
    group = thick * len(series) + 9
    parts = [_legend([(name, colour) for name, colour, _ in series], left)] if len(series) > 1 else []
    for row, name in enumerate(names):
        y = top + row * group
        parts.append(_text(left - 8, y + group / 2 - 0.5, name, anchor="end", longest=44))
        for bar, (_, colour, values) in enumerate(series):
            length, bar_y = room * values[row] / largest, y + bar * thick
            parts.append(
                f'<rect x="{_n(left)}" y="{_n(bar_y)}" width="{_n(length)}" height="{thick - 1}" fill="{colour}"/>'
            )
            size = 10 if len(series) > 1 else 12
            parts.append(_text(left + length + 5, bar_y + thick / 2 + 3.5, text(values[row]), size=size, fill=MUTED))
    return _svg(_WIDTH, top + len(names) * group, title, parts)


def histogram(counts: Sequence[int], edges: Sequence[float], *, title: str, x_label: str) -> Markup:
    """Histogram of ``counts`` (m,) between ``edges`` (m + 1,), increasing, with round ticks on both axes."""
    left, right, top, height = 56, 16, 8, 150
    low, high, largest = edges[0], edges[-1], max(counts, default=0) or 1

    def x_of(value: float) -> float:
        return left + (_WIDTH - left - right) * (value - low) / (high - low)

    def y_of(value: float) -> float:
        return top + height * (1 - value / largest)

    parts = []
    for tick in _ticks(0, largest, 4):
        y = y_of(tick)
        parts.append(f'<path d="M{left} {_n(y)}H{_WIDTH - right}" stroke="{LINE}"/>')
        parts.append(_text(left - 8, y + 4, f"{tick:,.10g}", anchor="end", fill=MUTED))
    for count, (start, stop) in zip(counts, pairwise(edges), strict=True):
        x, y = x_of(start), y_of(count)
        shape = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(x_of(stop) - x - 1, 0.5))}" height="{_n(top + height - y)}"'
        parts.append(f'<rect {shape} fill="{PALETTE[0]}"><title>{start:.3g} to {stop:.3g}: {count:,}</title></rect>')
    y = top + height + 16
    parts += [_text(x_of(tick), y, f"{tick:.10g}", anchor="middle", fill=MUTED) for tick in _ticks(low, high, 8)]
    parts.append(_text((left + _WIDTH - right) / 2, top + height + 34, x_label, anchor="middle", fill=MUTED))
    return _svg(_WIDTH, top + height + 42, title, parts)


def curve(
    xs: Sequence[float], values: Sequence[float], smoothed: Sequence[float], *, title: str, x_label: str
) -> Markup:
    """Curve of ``values`` over increasing ``xs``, thin, and of ``smoothed`` over the same, bold."""
    left, right, top, height = 64, 16, 8, 150
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-9 * max(abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    first, last = (xs[0], xs[-1]) if len(xs) > 1 else (0.0, 1.0)

    def x_of(value: float) -> float:
        return left + (_WIDTH - left - right) * (value - first) / (last - first)

    def y_of(value: float) -> float:
        return top + height * (1 - (value - low) / (high - low))

    parts = []
    for tick in _ticks(low, high, 4):
        y = y_of(tick)
        parts.append(f'<path d="M{left} {_n(y)}H{_WIDTH - right}" stroke="{LINE}"/>')
        parts.append(_text(left - 8, y + 4, f"{tick:,.10g}", anchor="end", fill=MUTED))
    for series, look in ((values, 'stroke-opacity="0.35"'), (smoothed, 'stroke-width="2"')):
        line = " ".join(f"{_n(x_of(x))},{_n(y_of(value))}" for x, value in zip(xs, series, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{PALETTE[0]}" {look}/>')
    y = top + height + 16
    parts += [_text(x_of(tick), y, f"{tick:.10g}", anchor="middle", fill=MUTED) for tick in _ticks(first, last, 8)]
    parts.append(_text((left + _WIDTH - right) / 2, top + height + 34, x_label, anchor="middle", fill=MUTED))
    return _svg(_WIDTH, top + height + 42, title, parts)


def scatter(points: np.ndarray, groups: np.ndarray, looks: Sequence[tuple[str, str, str]], *, title: str) -> Markup:
    """Cells in the plane, drawn group by group in the order of ``looks``.

    Parameters
    ----------
    points
        (n, 2) finite float. Both axes get the same scale.
    groups
        (n,) int, the group of each cell.
    looks
        (name, colour, badge) of each group; the badge is written in the middle of the group unless another is there.
    title
        What the chart shows, for those who cannot see it.
    """
    side, pad = 460, 12
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    scale = (side - 2 * pad) / (float((high - low).max()) or 1.0)
    xy = (points - (low + high) / 2) * (scale, -scale) + side / 2
    radius = 1.5 if len(points) > 1500 else 2.5
    parts = [f'<rect width="{side}" height="{side}" rx="6" fill="#fff" stroke="{LINE}"/>']
    badges: list[tuple[float, float, str]] = []
    for group, (name, colour, badge) in enumerate(looks):
        members = xy[np.asarray(groups) == group]
        if not len(members):
            continue
        # A zero-length stroke with round ends is the shortest way to write a dot.
        dots = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in members)
        style = f'stroke="{colour}" stroke-width="{2 * radius}" stroke-linecap="round" stroke-opacity="0.8" fill="none"'
        parts.append(f'<path d="{dots}" {style}><title>{label(name)}</title></path>')
        x, y = members[np.argmin(np.abs(members - np.median(members, axis=0)).sum(axis=1))]
        if badge and all(abs(x - other_x) > 17 or abs(y - other_y) > 15 for other_x, other_y, _ in badges):
            badges.append((x, y, badge))
    for x, y, badge in badges:
        halo = 'stroke="#fff" stroke-width="3.5" stroke-linejoin="round" paint-order="stroke"'
        parts.append(f"<g {halo}>{_text(x, y + 4, badge, anchor='middle', weight=700)}</g>")
    return _svg(side, side, title, parts)


def heat_map(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str) -> Markup:
    """Confusion of truth (``rows``) and prediction (``columns``).

    ``matrix`` (r, c) holds non-negative counts; a cell's shade and its figure in percent are its share of the row.
    """
    matrix = np.asarray(matrix, dtype=np.float64).reshape(len(rows), len(columns))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell = 40 if len(columns) <= 12 else 26 if len(columns) <= 24 else 16
    left = 16 + _CHAR * min(36, max((len(name) for name in rows), default=0))
    slant = 0.71 * _CHAR * min(30, max((len(name) for name in columns), default=0))
    top = 16 + slant
    parts = []
    for j, name in enumerate(columns):
        x = left + (j + 0.5) * cell + 3
        parts.append(_text(x, top - 6, name, longest=30, turn=f"rotate(-45 {_n(x)} {_n(top - 6)})"))
    for i, name in enumerate(rows):
        y = top + i * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, name, anchor="end", longest=36))
        for j, other in enumerate(columns):
            share, x = shares[i, j], left + j * cell
            shade = "#{:02x}{:02x}{:02x}".format(*(round(250 - (250 - end) * share) for end in DEEP))
            edge = MUTED if name == other else "#fff"
            what = f"truth {label(name)}, predicted {label(other)}: {matrix[i, j]:,.0f} ({share:.0%})"
            shape = f'x="{_n(x + 0.5)}" y="{_n(y + 0.5)}" width="{cell - 2}" height="{cell - 2}"'
            parts.append(f'<rect {shape} fill="{shade}" stroke="{edge}"><title>{what}</title></rect>')
            if cell > 16 and share >= 0.005:
                fill = "#fff" if share > 0.5 else INK
                parts.append(
                    _text(
                        x + cell / 2 - 0.5, y + cell / 2 + 3, f"{share * 100:.0f}", anchor="middle", size=10, fill=fill
                    )
                )
    return _svg(left + len(columns) * cell + slant + 8, top + len(rows) * cell + 4, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} font-size="12" fill="{INK}">'
    return Markup(f"{head}<title>{label(title)}</title>{''.join(parts)}</svg>")  # noqa: S704 - every text went through label()


def _text(
    x: float,
    y: float,
    value: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    fill: str = INK,
    longest: int | None = None,
    turn: str = "",
) -> str:
    """One line of text; when it is cut, the whole is its title."""
    cut = label(value, longest)
    whole = f"<title>{label(value)}</title>" if cut != label(value) else ""
    turned = f' transform="{turn}"' if turn else ""
    look = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{_n(x)}" y="{_n(y)}" {look}{turned}>{whole}{cut}</text>'


def _legend(entries: Sequence[tuple[str, str]], x: float) -> str:
    parts = []
    for name, colour in entries:
        parts.append(f'<rect x="{_n(x)}" y="3" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 15, 12, name, fill=MUTED))
        x += 15 + _CHAR * len(name) + 18
    return "".join(parts)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about ``most`` multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _n(value: float) -> str:
    """Write a coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")
