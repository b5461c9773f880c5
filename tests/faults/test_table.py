"""docs/reliability.md names every fault of the table and every test of this folder, and no test that does not exist."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def functions(folder: pathlib.Path) -> set[str]:
    """The names of the test functions in a folder."""
    trees = [ast.parse(path.read_text()) for path in folder.rglob("test_*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_and_the_tests_name_each_other():
    lines = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if re.match(r"\| \d* ?\|", line)]
    named = {name for line in lines for name in re.findall(r"`(test_\w+)`", line)}
    assert not named - functions(ROOT / "tests"), "tests that do not exist"
    here = {name for name in functions(ROOT / "tests/faults") if name.startswith("test_") and name[5:7].isdigit()}
    assert not here - named, "tests that the page does not name"
    for line in lines:
        number, tests = line.split("|")[1].strip(), line.split("|")[-2]
        assert re.findall(r"`(test_\w+)`", tests), line
        assert all(name[5:7] == f"{int(number):02}" for name in re.findall(r"`(test_\d\w+)`", tests) if number), line
    assert [line.split("|")[1].strip() for line in lines if line.split("|")[1].strip()] == [
        str(i) for i in range(1, 31)
    ]
