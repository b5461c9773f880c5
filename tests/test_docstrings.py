"""Docstrings are in Google's style, and their examples run. Ruff checks the style except for the layout of sections."""

import ast
import doctest
import importlib
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "entropy_rl").rglob("*.py"))
HEADINGS = {"Args", "Returns", "Raises", "Attributes", "Yields", "Example", "Examples", "Note"}
OF_NAMES = {"Args", "Raises", "Attributes"}  # each entry is `name: text`, or `name (type): text`
HEADING = re.compile(r"([A-Z][a-z]+(?: [A-Za-z]+)?):")
ENTRY = re.compile(r"[*\w.]+(?: \(.+?\))?: \S")


def faults(text: str) -> Iterator[str]:
    """What is wrong with the sections of a docstring, whose common indentation is removed."""
    lines = text.splitlines()
    section = ""
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line:
            continue
        if indent == 0:
            section = ""
            if heading := HEADING.fullmatch(line):
                section = heading[1]
                if section not in HEADINGS:
                    yield f"{line!r} is not one of the headings {sorted(HEADINGS)}"
                elif not lines[i + 1 :] or not lines[i + 1].startswith("    ") or lines[i + 1].startswith("     "):
                    yield f"the first line below {line!r} must be indented by 4 spaces"
        elif section in HEADINGS and indent < 4:
            yield f"{section}: {line.strip()!r} is indented by {indent} spaces, not by 4"
        elif section in OF_NAMES and indent == 4 and not ENTRY.match(line[4:]):
            yield f"{section}: {line.strip()!r} is not `name: text`; a line that continues an entry is indented by 8"
        elif section in OF_NAMES and 4 < indent < 8:
            yield f"{section}: {line.strip()!r} is indented by {indent} spaces: 4 begin an entry, 8 continue it"


def docstrings(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Where each docstring of a file is, and its text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}", text


def test_sections_are_indented_by_four():
    wrong = [f"{place}: {fault}" for path in FILES for place, text in docstrings(path) for fault in faults(text)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("Args:\n    x: a number\n    y (int): on\n        two lines\n\nReturns:\n    Words.\n    More words.", []),
        ("Args:\n  x: a number", ["the first line below 'Args:'", "indented by 2 spaces"]),
        ("Args:\n    x: a number that\n    continues here", ["'continues here' is not `name: text`"]),
        ("Args:\n    x: a number that\n      continues here", ["indented by 6 spaces"]),
        ("Raises:\n    where x is 0", ["is not `name: text`"]),
        ("Returns:\n      Words.", ["the first line below 'Returns:'"]),
        ("Usage:\n    Words.", ["'Usage:' is not one of the headings"]),
    ],
)
def test_the_check_finds_what_it_is_for(section, expected):
    found = list(faults("One line.\n\n" + section))
    assert len(found) == len(expected) and all(e in f for e, f in zip(expected, found, strict=True)), found


@pytest.mark.parametrize(
    "name",
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if any(">>> " in text for _, text in docstrings(path))
    ],
)
def test_examples_run(name):
    """Only the modules that have examples are imported: some of the others define command-line flags."""
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
