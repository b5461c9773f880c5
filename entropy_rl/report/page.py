"""The report's folder: the page, its figures and tables as files, and the viewer's data."""

import html
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from entropy_rl.report import tokens
from entropy_rl.report.figure import Figure, missing, to_csv, to_png, to_svg
from entropy_rl.report.tokens import Step

_WRITTEN = (".png", ".svg", ".csv", ".js")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_ROWS, _MOST_ROWS = 40, 400  # of a table on the page: open, and folded; its file has all
_VIEWER = """
<section id="tokens"><h2>Every token</h2>
<form onsubmit="return false">
<label>run <select id="run"></select></label>
<label>step <select id="step"></select></label>
<label>colour by <select id="colour"></select></label>
<label>order <select id="sort">
<option value="order">as sampled</option><option value="reward">reward</option><option value="entropy">entropy</option>
<option value="surprise">surprise</option><option value="length">length</option>
</select></label>
<label>search <input id="search" type="search"></label>
<label>beside <select id="against"></select></label>
<label class="check"><input id="group" type="checkbox"> the whole group</label>
</form>
<p id="count" class="facts" role="status"></p>
<div class="viewer"><ol id="list" aria-label="responses"></ol><div id="shown"></div></div>
<div id="tip" role="tooltip" hidden></div>
</section>
"""


def write(
    folder: epath.Path,
    title: str,
    figures: Sequence[Figure],
    workdirs: Mapping[str, str],
    text: str,
    given: Mapping[str, Step] | None = None,
) -> None:
    """Writes `index.html`, `figures/`, `tables/` and `data/` into a folder.

    Args:
        folder: made if it does not exist; what an earlier report wrote is replaced.
        title: of the page.
        figures: in the order of the page.
        workdirs: name -> the run directory, of the runs whose recorded tokens are shown.
        text: shown as it is, at the end.
        given: name -> tokens that no run recorded, and that are shown too.
    """
    for name in ("figures", "tables", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).iterdir():
            if old.suffix in _WRITTEN:
                old.unlink()
    scripts = dict(_write_tokens(folder, workdirs))
    for number, (name, step) in enumerate((given or {}).items()):
        file = f"data/text{number}.js"
        _write(folder / file, tokens.script(name, step))
        scripts[name] = [tokens.listed(step, file)]
    drawings = {figure.name: to_svg(figure) for figure in figures if figure.draw is not None}
    for figure in figures:
        _write(folder / "tables" / f"{figure.name}.csv", to_csv(figure.table))
        if figure.points:
            _write(folder / "tables" / f"{figure.name}_points.csv", to_csv(figure.points))
        if figure.draw is not None:
            (folder / "figures" / f"{figure.name}.png").write_bytes(to_png(figure))
            _write(folder / "figures" / f"{figure.name}.svg", drawings[figure.name])
    parts = [f"<h1>{_escape(title)}</h1>", *(_section(figure, drawings.get(figure.name, "")) for figure in figures)]
    if scripts:
        _write(folder / "data" / "index.js", tokens.index_script(scripts))
        parts.append(f"{_VIEWER}<script>{_asset('report.js')}</script><script src=data/index.js></script>")
    parts.append(f"<h2>In words</h2><pre class=scroll tabindex=0>{_escape(text)}</pre>")
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    style = f"<title>{_escape(title)}</title><style>{_asset('report.css')}</style>"
    _write(folder / "index.html", f"{head}{style}<body><main>{''.join(parts)}</main></body></html>\n")


def _write_tokens(folder: epath.Path, workdirs: Mapping[str, str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A script per recorded step; yields each run's name with its steps as the viewer's index has them."""
    for number, (name, steps) in enumerate(tokens.by_run(workdirs)):
        listed = []
        for step in (tokens.read(workdirs[name], step) for step in steps):
            file = f"data/run{number}-step{step.step}.js"
            _write(folder / file, tokens.script(name, step))
            listed.append(tokens.listed(step, file))
        yield name, listed


def _section(figure: Figure, drawn: str) -> str:
    links = [f"<a href='tables/{figure.name}.csv'>CSV</a>"]
    if figure.points:
        links.append(f"<a href='tables/{figure.name}_points.csv'>CSV of the points</a>")
    if drawn:
        links = [f"<a href='figures/{figure.name}.{kind}'>{kind.upper()}</a>" for kind in ("png", "svg")] + links
        drawn = f"<div class=scroll tabindex=0>{drawn}</div>"
    source = f" <span class=source>Compare {_escape(figure.source)}.</span>" if figure.source else ""
    table = ""
    if figure.draw is None or len(figure.table) <= _MOST_ROWS:
        table = f"<div class=scroll tabindex=0>{_table(figure.table[:_MOST_ROWS])}</div>"
    if table and len(figure.table) > _ROWS:
        table = f"<details><summary>The table</summary>{table}</details>"
    return (
        f"<section id='{figure.name}'><h2>{_escape(figure.title)}</h2>"
        f"<figure>{drawn}"
        f"<figcaption>{_escape(figure.says)}{source} {' '.join(links)}</figcaption></figure>{table}</section>"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["".join(f"<th scope=col>{_escape(name)}</th>" for name in names)]
    lines += ["".join(f"<td>{_escape(_shown(row.get(name)))}</td>" for name in names) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _shown(value: Any) -> str:
    if missing(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    """Text for a page: nothing in it is a tag, and characters that no page may hold are shown as such."""
    return html.escape(_CONTROL.sub("\ufffd", text))


def _write(path: epath.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _asset(name: str) -> str:
    return (importlib.resources.files("entropy_rl.report") / "assets" / name).read_text(encoding="utf-8")
