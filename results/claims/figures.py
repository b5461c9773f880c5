"""The figure of a claim: every judged effect with its interval, beside the values that satisfy the criterion."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import Part

COLOURS = {"holds": "#1a7f37", "fails": "#cf222e", "cannot tell": "#6e7781"}


def judged(parts: Sequence[Part]) -> list[Part]:
    """The parts that count, which have a criterion and something to hold against it."""
    return [
        p
        for p in parts
        if (p.least, p.most) != (-math.inf, math.inf)
        and math.isfinite(p.effect.value)
        and not p.text.startswith("reported")
    ]


def forest(found: Mapping[str, Sequence[Part]]) -> bytes:
    """An SVG with a line per bed and part, each with an axis of its own; the shaded values satisfy the criterion.

    Args:
        found: bed -> parts.
    """
    rows = [(bed, p) for bed, parts in found.items() for p in judged(parts)]
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "claims", "svg.fonttype": "none"}):
        canvas = Figure(figsize=(8, 0.4 + 0.75 * max(1, len(rows))), layout="constrained")
        for axes, (bed, p) in zip(canvas.subplots(max(1, len(rows)), 1, squeeze=False)[:, 0], rows, strict=False):
            _line(axes, f"{bed}: {p.text}", p)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _line(axes: Axes, text: str, p: Part) -> None:
    ends = [x for x in (*p.effect, p.least, p.most) if math.isfinite(x)]
    room = 0.15 * (np.ptp(ends) or abs(ends[0]) or 1.0)
    low, high = min(ends) - room, max(ends) + room
    axes.axvspan(max(low, p.least), min(high, p.most), color="#1a7f37", alpha=0.12, lw=0)
    value, left, right = p.effect
    if math.isfinite(left):
        axes.plot([left, right], [0, 0], color=COLOURS[p.verdict], lw=2)
    axes.plot([value], [0], "o", color=COLOURS[p.verdict])
    axes.set(xlim=(low, high), ylim=(-1, 1), yticks=[])
    axes.set_title(f"{text} ({p.verdict})", loc="left", fontsize=9)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
