"""The page: all its numbers are in its tables, and no text that a model wrote can do anything in it."""

import csv
import html.parser
import re

import pytest

from entropy_rl import analyze, law
from entropy_rl.record import jsonl


class Page(html.parser.HTMLParser):
    """The cells of a page's tables, by the section that they are in; its tags; its scripts."""

    def __init__(self, text):
        super().__init__()
        self.section, self.tags, self.cells, self.open, self.links = None, [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "section":
            self.section = given.get("id")
        if tag == "tr" and self.section:
            self.cells.setdefault(self.section, []).append([])
        self.links += [given[key] for key in ("href", "src") if key in given and tag != "use"]

    def handle_data(self, data):
        if self.open[-1:] in (["td"], ["th"]) and self.section:
            self.cells[self.section][-1].append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.open[-1] == tag and self.section:
            row = self.cells[self.section][-1]
            row += [""] * (self.tags_in_row(row) - len(row))
        while self.open and self.open.pop() != tag:
            pass

    def tags_in_row(self, row):
        return len(row)


@pytest.fixture(scope="module", params=["made_up_run", pytest.param("real_run", marks=pytest.mark.slow)])
def recorded(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def report(recorded):
    (recorded / "report" / "tables").mkdir(parents=True, exist_ok=True)
    for name in ("of_before.csv", "notes.txt"):
        (recorded / "report" / "tables" / name).write_text("a\n1\n")
    text = analyze.report(str(recorded))
    return text, recorded / "report"


def table_of(folder, name):
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_has_the_numbers_of_its_tables(report, recorded):
    _, folder = report
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    names = {path.stem for path in (folder / "tables").glob("*.csv")}
    assert {"curves", "law", "covariance_tail"} <= names and page.cells.keys() >= {"law", "covariance_tail"}
    for name, (head, *rows) in page.cells.items():
        table = table_of(folder, name)
        assert head == list(table[0])
        for shown, row in zip(rows, table):
            want = [cell for cell in row.values() if cell]
            assert [cell for cell in shown if cell] == [_as_shown(cell) for cell in want]


def _as_shown(cell):
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d+(e[-+]\d+)?|-?\d+e[-+]\d+", cell) else cell


def test_every_number_of_the_text_is_in_a_table(report):
    text, folder = report
    names = ("spans", "evaluations", "laws", "predictions", "quadrants")
    cells = [cell for name in names for row in table_of(folder, name) for cell in row.values()]
    known = [float(cell) for cell in cells if re.fullmatch(r"[-+.\de]+", cell)]
    found = re.findall(r"(-?\d+\.\d+(?:e[-+]\d+)?)(%?)", text.replace("[", " ").replace("-–", ""))
    assert len(found) > 50
    for number, percent in found:
        value, digits = float(number), len(number.partition(".")[2].partition("e")[0])
        scale = 100.0 if percent else 1.0
        unit = 10.0**-digits * 10.0 ** int(number.partition("e")[2] or 0)
        assert any(abs(scale * x - value) <= 0.5001 * unit for x in known), number


def test_the_tables_are_the_runs_metrics(report, recorded):
    _, folder = report
    rows = jsonl.read(recorded / "metrics.jsonl")
    for row in table_of(folder, "curves"):
        assert float(row["value"]) == next(r for r in rows if r["step"] == int(row["step"]))[row["metric"]]
    trained = [r for r in rows if r["step"]]
    fitted = law.fit([r["entropy/mean"] for r in trained], [r["reward/mean"] for r in trained])
    assert float(table_of(folder, "law")[0]["a"]) == pytest.approx(fitted.a)
    tail = table_of(folder, "covariance_tail")
    assert float(tail[0]["top 0.2%"]) == trained[0]["cov/top_0.2pct"]


def test_everything_that_the_page_names_is_beside_it(report):
    text, folder = report
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert page.links and not [link for link in page.links if not (folder / link).is_file() and link[0] != "#"]
    assert (folder / "curves.png").read_bytes() == (folder / "figures" / "curves.png").read_bytes()
    listed = re.findall(r'"file": "([^"]+)"', (folder / "data" / "index.js").read_text())
    assert len(listed) == 2
    assert all((folder / name).is_file() for name in listed)
    assert "law R = −a·exp(H) + b" in text and "plot" not in text


def test_tables_of_an_earlier_report_are_removed(report):
    _, folder = report
    assert not (folder / "tables" / "of_before.csv").exists() and (folder / "tables" / "notes.txt").exists()
