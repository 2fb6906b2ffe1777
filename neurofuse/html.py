"""In: a title, facts, rows and stretches of time. Out: a small piece of HTML for notebooks, words escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# Colours of text and ground are left to the notebook, which may be dark.
_STYLE = (
    "<style>.neurofuse td,.neurofuse th{text-align:left;padding:1px 10px 1px 0;vertical-align:top}"
    ".neurofuse table{border-collapse:collapse;margin:4px 0}.neurofuse th{font-weight:600}"
    ".neurofuse .warn{border-left:3px solid #D55E00;padding-left:6px}</style>"
)


class Drawn(str):
    """Markup that was made here and is not to be escaped."""


def card(
    title: str,
    *,
    facts: Iterable[tuple[str, object]] = (),
    head: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
    warnings: Iterable[str] = (),
    folded: tuple[str, Sequence[str]] | None = None,
) -> str:
    """A titled box: facts line by line, a table, warnings, and lines that open on a click.

    Parameters
    ----------
    title : str
    facts : iterable of (name, value)
        Facts whose value is None are left out.
    head, rows : sequence
        A table; cells that are `Drawn` go in as they are.
    warnings : iterable of str
    folded : (title, lines), optional
    """
    parts = [_STYLE, "<div class='neurofuse'>", f"<b>{escape(title)}</b>"]
    given = [(name, value) for name, value in facts if value is not None]
    if given:
        parts.append(_table((), given))
    listed = list(rows)
    if listed:
        parts.append(_table(head, listed))
    parts += [f"<div class='warn'>{escape(str(w))}</div>" for w in warnings]
    if folded is not None and folded[1]:
        lines = "".join(f"<li>{escape(str(line))}</li>" for line in folded[1])
        parts.append(f"<details><summary>{escape(folded[0])}</summary><ol>{lines}</ol></details>")
    return "".join([*parts, "</div>"])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = f"<tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{_cell(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, Drawn):
        return value
    return escape("-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))


def coverage(stretches: Sequence[Sequence[float]], span_s: tuple[float, float]) -> Drawn:
    """A bar of a span of time with the stretches that hold data filled in."""
    width, start_s = 160.0, span_s[0]
    scale = width / max(span_s[1] - span_s[0], 1e-12)
    # Gaps too narrow to be seen are closed, so that thousands of stretches make no more bars than fit.
    joined: list[list[float]] = []
    for a, b in stretches:
        left, right = max(a - start_s, 0) * scale, (b - start_s) * scale
        if joined and left - joined[-1][1] < 0.5:
            joined[-1][1] = right
        else:
            joined.append([left, right])
    bars = "".join(
        f"<rect x='{a:.1f}' y='2' width='{max(b - a, 0.5):.1f}' height='8' fill='#0072B2'/>"
        for a, b in joined
    )
    frame = (
        f"<rect x='0' y='2' width='{width:.0f}' height='8' fill='none' stroke='#888888' stroke-width='0.5'/>"
    )
    return Drawn(f"<svg width='{width:.0f}' height='12' role='img'>{bars}{frame}</svg>")


def trace(values: Iterable[float], low: Iterable[float] = (), high: Iterable[float] = ()) -> Drawn:
    """A line over even steps, with a band around it if there is one; what is not finite is left out."""
    width, height, most = 320.0, 60.0, 160
    line = [float(v) for v in values]
    rows = list(zip(line, [*map(float, low)] or line, [*map(float, high)] or line, strict=True))
    rows = [r for r in rows[:: max(1, len(line) // most)] if all(abs(x) < float("inf") for x in r)]
    if len(rows) < 2:
        return Drawn("")
    bottom, top = min(r[1] for r in rows), max(r[2] for r in rows)
    room = (top - bottom) or 1.0

    def place(column: int) -> list[str]:
        return [
            f"{width * k / (len(rows) - 1):.1f},{height - 2 - (height - 4) * (r[column] - bottom) / room:.1f}"
            for k, r in enumerate(rows)
        ]

    band = " ".join(place(1) + place(2)[::-1])
    return Drawn(
        f"<svg width='{width:.0f}' height='{height:.0f}' role='img'>"
        f"<polygon points='{band}' fill='#0072B2' fill-opacity='0.25'/>"
        f"<polyline points='{' '.join(place(0))}' fill='none' stroke='#0072B2' stroke-width='1.5'/></svg>"
    )
