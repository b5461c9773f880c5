"""A figure of the report: what it shows, the numbers it is drawn from, and how it is drawn."""

import csv
import functools
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Rows = Sequence[Mapping[str, Any]]  # of a run's metrics.jsonl: one per step, values by metric
Runs = Mapping[str, Rows]  # by the run's name
Table = Sequence[Mapping[str, Any]]

COLORS = (
    "#3366cc",
    "#dc6a00",
    "#2a8a4a",
    "#b8336a",
    "#7a52c7",
    "#1693a5",
    "#8a6d00",
    "#777777",
)  # readable on both themes
INK = "#123456"  # of text and axes in a drawing; the page replaces it by its own colour


class Figure(NamedTuple):
    """A figure.

    Attributes:
        name: of its files.
        title: the heading.
        says: two sentences: what it shows, and what to look for.
        source: which figure of which paper it corresponds to; "" if none.
        table: the numbers of the figure, one row per point or bar.
        draw: draws the table onto a canvas; None: the table alone is shown.
        size: of the drawing, in inches.
        points: what is drawn beside the table, one row per point; a file of its own.
    """

    name: str
    title: str
    says: str
    source: str
    table: Table
    draw: Callable[["Canvas"], None] | None = None
    size: tuple[float, float] = (9.0, 3.4)
    points: Table = ()


def to_csv(table: Table) -> str:
    """The table as CSV; a value that was not measured is empty."""
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if missing(v) else v for k, v in row.items()} for row in table)
    return text.getvalue()


def to_svg(figure: Figure) -> str:
    """The drawing as SVG whose text and lines take the colour of the page around it."""
    text = _save(figure, "svg").decode()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def to_png(figure: Figure) -> bytes:
    """The drawing as PNG, dark on white."""
    return _save(figure, "png")


def _save(figure: Figure, kind: str) -> bytes:
    import matplotlib
    from cycler import cycler  # matplotlib's own
    from matplotlib.figure import Figure as Canvas  # not pyplot: a notebook's own backend stays as it is

    ink = INK if kind == "svg" else "black"
    style: dict[Any, Any] = {
        "font.size": 11,
        "font.family": ["DejaVu Sans", *_more_fonts()],
        "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
        "svg.hashsalt": figure.name,
        "text.parse_math": False,  # a name with $ in it is a name
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2,
        "axes.prop_cycle": cycler(color=COLORS),
        **{
            k: ink
            for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        },
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a model's text may hold any; it becomes a box
        canvas = Canvas(figsize=figure.size, layout="constrained")
        assert figure.draw is not None
        figure.draw(canvas)
        file = io.BytesIO()
        more: dict[str, Any] = {"metadata": {"Date": None}, "transparent": True} if kind == "svg" else {"dpi": 150}
        canvas.savefig(file, format=kind, **more)
    return file.getvalue()


@functools.cache
def _more_fonts() -> tuple[str, ...]:
    """Fonts of this machine for what matplotlib's own has no letters for: Chinese, Japanese and Korean."""
    from matplotlib import font_manager

    return tuple(name for name in font_manager.get_font_names() if "CJK" in name)[:1]


def by(table: Table, key: str) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    """The rows of a table by the value of one column, in the order in which the values appear."""
    for value in dict.fromkeys(row[key] for row in table):
        yield value, [row for row in table if row[key] == value]


def colored(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name."""
    return dict(zip(names, itertools.cycle(COLORS)))


def column(table: Table, key: str) -> np.ndarray:
    """A column as float64, NaN where it is None."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in table], np.float64)


def step_axis(axes: "Axes") -> None:
    """The horizontal axis shows steps, which are whole."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(axes: "Axes", entries: int) -> None:
    """A legend, if there is more than one entry."""
    if entries > 1:
        axes.legend(frameon=False, fontsize="small")


def missing(value: Any) -> bool:
    """Whether a value was not measured: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
