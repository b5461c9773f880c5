"""The worked example of CONTRIBUTING.md runs as it is printed, and a method that is half added is a clear error."""

import pathlib
import re
import sys
import types

import pytest
from reference import transforms as reference
from token_transforms import test_matrix as matrix
from token_transforms import test_reference

from entropy_rl import token_transforms as tt
from entropy_rl.config import recipes
from entropy_rl.objective.advantages import ADVANTAGES
from entropy_rl.objective.surrogates import OBJECTIVES
from entropy_rl.token_transforms.base import stateless

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The page's Python blocks, by the file that is named in the line above each.
BLOCKS = dict(re.findall(r"`([\w/]+\.py)`[^\n]*\n\n```python\n(.*?)```", PAGE, re.DOTALL))

MATRIX = (
    matrix.test_it_changes_something,
    matrix.test_shapes_dtypes_and_the_state_structure_are_kept,
    matrix.test_it_is_exactly_zero_at_masked_tokens_and_does_not_read_them,
    matrix.test_it_is_finite_at_the_edges,
    matrix.test_a_mask_keeps_its_share_in_its_state,
    matrix.test_eight_devices_select_the_same_and_gather_no_statistic,
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1 and 2 of the page: the transform and its name."""
    source = BLOCKS["entropy_rl/token_transforms/low_probability.py"]
    assert len(source.splitlines()) < 60
    module = types.ModuleType("entropy_rl.token_transforms.low_probability")
    exec(source, module.__dict__)
    factory = module.keep_low_probability
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tt.TRANSFORMS, factory.__name__, factory)
    monkeypatch.setattr(tt, factory.__name__, factory, raising=False)


@pytest.mark.usefixtures("registered")
def test_the_examples_own_tests_pass():
    tests = {}
    exec(BLOCKS["tests/token_transforms/test_low_probability.py"], tests)
    checks = [check for name, check in tests.items() if name.startswith("test_")]
    assert checks
    for check in checks:
        check()


@pytest.mark.usefixtures("registered")
def test_the_example_equals_its_reference(monkeypatch):
    functions = dict(vars(reference))
    exec(BLOCKS["tests/reference/transforms.py"], functions)
    ((name, options),) = eval("[" + BLOCKS["tests/token_transforms/test_reference.py"] + "]")
    monkeypatch.setattr(reference, name, functions[name], raising=False)
    test_reference.test_it_equals_numpy(name, options)


@pytest.mark.usefixtures("registered")
def test_the_example_passes_the_common_matrix():
    for check in MATRIX:
        check("keep_low_probability")


@pytest.mark.usefixtures("registered")
def test_the_examples_recipe_builds():
    entry = eval("{" + BLOCKS["entropy_rl/config/recipes.py"] + "}", vars(recipes))
    ((name, recipe),) = entry.items()
    assert name not in recipes.RECIPES
    tt.build(recipe["transforms"])


def test_the_page_lists_the_files_that_a_method_touches():
    rows = re.findall(r"^\| `([\w/]+\.(?:py|md))` \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8 and sum("(new)" in text for _, text in rows) == 2
    assert all((ROOT / file).exists() != ("(new)" in text) for file, text in rows), rows
    assert set(BLOCKS) <= {file for file, _ in rows}


def test_the_matrix_explains_why_a_transform_failed(monkeypatch):
    def never_acts():
        return stateless(lambda grads, tokens, key: grads)

    def needs_an_option(coef):
        return never_acts()

    for factory in (never_acts, needs_an_option):
        monkeypatch.setitem(tt.TRANSFORMS, factory.__name__, factory)
    with pytest.raises(
        AssertionError, match=r"never_acts changes no gradient(.|\n)*add a line .* to OPTIONS in tests/"
    ):
        matrix.test_it_changes_something("never_acts")
    with pytest.raises(ValueError, match=r"needs the option 'coef'") as error:
        matrix.test_it_changes_something("needs_an_option")
    assert "add a line with options to OPTIONS in tests/token_transforms/test_matrix.py" in error.value.__notes__[0]


def test_every_transform_is_public():
    missing = [name for name in tt.TRANSFORMS if name not in tt.__all__ or not hasattr(tt, name)]
    assert not missing, f"entropy_rl/token_transforms/__init__.py: import {missing} and add them to __all__"


def table_of_methods(readme: str) -> list[tuple[list[str], list[str]]]:
    """The README's table of methods: the recipes of each row, and the names in its column "made of"."""
    table = re.search(r"^\| name \|.*\| made of \|\n\|[-|]+\n((?:\|.*\n)+)", readme, re.MULTILINE)
    assert table, "README.md has no table with the columns: name, …, made of"
    cells = [row.strip("|").split("|") for row in table[1].splitlines()]
    return [(re.findall(r"`([^`]+)`", row[0]), re.findall(r"`(\w+)`", row[-1])) for row in cells]


def without_row(readme: str) -> list[str]:
    rows = table_of_methods(readme)
    return [name for name in recipes.RECIPES if not any(name in names for names, _ in rows)]


def test_the_readme_has_a_row_for_every_recipe():
    assert not without_row(README), (
        f"README.md: the table of methods lacks {', '.join(without_row(README))}; "
        "a row is | `recipe` | what it does | paper | `transform` |"
    )
    shortened = "\n".join(line for line in README.splitlines() if not line.startswith("| `kl_cov`")) + "\n"
    assert without_row(shortened) == ["kl_cov", "kl_cov_32b"]


def test_the_readme_lists_only_methods_that_exist():
    parts = {**ADVANTAGES, **OBJECTIVES, **tt.TRANSFORMS}
    for names, made_of in table_of_methods(README):
        assert names and not [n for n in names if n not in recipes.RECIPES], f"README.md: no recipe in {names}"
        assert not [n for n in made_of if n not in parts], f"README.md: {names} cannot be made of {made_of}"
