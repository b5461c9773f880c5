"""Makes the atlas from results/atlas/data: index.html, which sorts by any column, table.csv, and figure.svg and .png.

python results/atlas/page.py        # make results
"""

import csv
import html
import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from entropy_rl.sweep import statistics
from entropy_rl.sweep.statistics import Estimate

HERE = pathlib.Path(__file__).parent
BASE = "grpo"
OUTCOMES = {
    "accuracy": "greedy, held-out problems, at the end",
    "pass@16": "of 16 samples at temperature 1, held-out problems, at the end",
    "reward": "mean over the last tenth of the steps",
    "entropy_kept": "entropy of the last tenth of the steps over that of the first fiftieth",
    "forks_kept": "share of the start's top 20% positions that are among the end's, on the start's responses",
    "tokens_per_s": "tokens of training per second; a step with all its parts, without evaluations",
}


class Line(NamedTuple):
    """A method.

    Attributes:
        method: its recipe.
        knob: its knob, and the value that was chosen.
        seeds: how many.
        own: outcome -> mean over seeds.
        gain: outcome -> difference to GRPO, paired by seed; of tokens_per_s the log of the ratio.
        command: that makes the first of its runs.
    """

    method: str
    knob: str
    seeds: int
    own: dict[str, Estimate]
    gain: dict[str, Estimate]
    command: str


def read(folder: pathlib.Path) -> dict[str, dict[int, dict[str, str]]]:
    """Method -> seed -> row, GRPO first; {} if nothing was entered.

    Raises:
        ValueError: There are methods, but not GRPO's runs to compare them with.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            found[path.stem] = {int(row["seed"]): row for row in csv.DictReader(file)}
    if found and BASE not in found:
        raise ValueError(f"{folder} has no {BASE}.csv to compare with: python results/atlas/enter.py {BASE}")
    return {BASE: found[BASE]} | found if found else {}


def lines(found: Mapping[str, Mapping[int, Mapping[str, str]]]) -> list[Line]:
    """A line per method, its differences paired by seed with GRPO's runs."""
    made = []
    for method, runs in found.items():
        both = sorted(runs.keys() & found[BASE].keys())
        own, gain = {}, {}
        for name in OUTCOMES:
            values = np.array([_number(runs[seed][name]) for seed in sorted(runs)])
            own[name] = statistics.difference(values, np.zeros_like(values))
            pair = [np.array([_number(rows[seed][name]) for seed in both]) for rows in (runs, found[BASE])]
            if name == "tokens_per_s":
                pair = [np.log(x) for x in pair]
            gain[name] = statistics.difference(*pair)
        first = runs[min(runs)]
        made.append(Line(method, first["knob"], len(runs), own, gain, first["command"]))
    return made


def _number(text: str) -> float:
    return float(text or "nan")


def table(some: list[Line]) -> list[dict[str, object]]:
    """A row per method and outcome; empty where there is no number."""
    rows = []
    for line in some:
        for name in OUTCOMES:
            row: dict[str, object] = {"method": line.method, "knob": line.knob, "seeds": line.seeds, "outcome": name}
            for kind, estimate in (("mean", line.own[name]), ("difference", line.gain[name])):
                named = zip(("", "_low", "_high"), estimate, strict=True)
                row |= {f"{kind}{end}": "" if math.isnan(x) else f"{x:.6g}" for end, x in named}
            rows.append(row)
    return rows


def shown(name: str, own: Estimate, gain: Estimate | None) -> str:
    """A cell's text: the mean with its interval, and the difference to GRPO, of tokens/s as a factor."""
    digits = 0 if name == "tokens_per_s" else 3
    if math.isnan(own.value):
        return ""
    text = _interval(own, digits)
    if gain is None:
        return text
    if name == "tokens_per_s":
        return f"{text}<br><small>× {_interval(Estimate(*np.exp(gain)), 2)}</small>"
    return f"{text}<br><small>{_interval(gain, 3, '+')}</small>"


def _interval(estimate: Estimate, digits: int, sign: str = "") -> str:
    value, low, high = (f"{x:{sign}.{digits}f}" for x in estimate)
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:90rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25rem .75rem;border-bottom:1px solid #8885}
td{text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}small{opacity:.75}img{max-width:100%}
th button{font:inherit;font-weight:bold;background:none;border:0;cursor:pointer;color:inherit;padding:0}
th[aria-sort=ascending] button::after{content:" ↑"}th[aria-sort=descending] button::after{content:" ↓"}
"""
SCRIPT = """
for (const head of document.querySelectorAll('th')) head.firstChild.addEventListener('click', () => {
  const down = head.getAttribute('aria-sort') !== 'descending', at = head.cellIndex;
  for (const other of document.querySelectorAll('th')) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const value = ({cells: {[at]: cell}}) => cell.dataset.value === undefined ? cell.textContent : +cell.dataset.value;
  const body = document.querySelector('tbody'), sign = down ? -1 : 1;
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x > y ? 1 : x < y ? -1 : 0);
  });
  body.append(...rows);
});
"""


def page(some: list[Line]) -> str:
    """The page, one file that needs nothing else but the figure."""
    heads = ["method", "knob", *OUTCOMES]
    body = []
    for line in some:
        cells = [f"<td title='{html.escape(line.command, quote=True)}'>{html.escape(line.method)}"]
        key, _, value = line.knob.partition("=")
        cells.append(f"<td>{html.escape(key.rpartition('.')[2])}={html.escape(value)}")
        for name in OUTCOMES:
            gain = None if line.method == BASE else line.gain[name]
            cells.append(f"<td data-value='{line.own[name].value}'>{shown(name, line.own[name], gain)}")
        body.append(f"<tr>{''.join(cells)}")
    meaning = "".join(f"<dt>{name}<dd>{html.escape(text)}" for name, text in OUTCOMES.items())
    seeds = sorted({line.seeds for line in some})
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Atlas of methods</title><style>{STYLE}</style>"
        f"<h1>Atlas of methods</h1><p>{len(some)} methods on the bed <code>two_readings</code>, "
        f"{' or '.join(map(str, seeds))} seeds each: mean over seeds with Student's 95% interval, and below it the "
        f"difference to {BASE}, paired by seed (of tokens per second the ratio). A click on a heading sorts. The "
        "knob of each method was chosen among three values on two other seeds. To enter a method of your own: "
        "<code>python results/atlas/enter.py NAME --knob=KEY=A,B,C &amp;&amp; make results</code>. All numbers: "
        "<a href=table.csv>table.csv</a>; the command of a run is shown over its method's name."
        "<p><img src=figure.svg alt='held-out accuracy against the share of the entropy that is kept'>"
        f"<table><thead><tr>{''.join(f'<th scope=col><button>{name}</button>' for name in heads)}</thead>"
        f"<tbody>{''.join(body)}</tbody></table><dl>{meaning}</dl><script>{SCRIPT}</script></html>\n"
    )


def figure(some: list[Line], folder: pathlib.Path) -> None:
    """Draws accuracy against entropy kept, a cross of intervals per method, into figure.svg and figure.png."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "atlas"}):
        canvas = Figure(figsize=(12, 8), layout="constrained")
        axes = canvas.subplots()
        for i, line in enumerate(some):
            x, y = line.own["entropy_kept"], line.own["accuracy"]
            bars = [np.nan_to_num([[e.value - e.low], [e.high - e.value]]) for e in (x, y)]
            color = "black" if line.method == BASE else f"C{i % 10}"
            axes.errorbar([x.value], [y.value], bars[1], bars[0], "o", color=color, elinewidth=0.7, alpha=0.8)
            axes.annotate(line.method, (x.value, y.value), (4, 4), textcoords="offset points", color=color)
        axes.set(xlabel="share of the entropy that is kept", ylabel="held-out accuracy, greedy")
        canvas.savefig(folder / "figure.png", dpi=120)
        canvas.savefig(folder / "figure.svg", metadata={"Date": None})


def main(folder: pathlib.Path = HERE) -> None:
    """Writes all files, if anything was entered."""
    some = lines(read(folder / "data"))
    if not some:
        return
    rows = table(some)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "index.html").write_text(page(some))
    figure(some, folder)


if __name__ == "__main__":
    main()
