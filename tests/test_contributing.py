"""CONTRIBUTING.md's worked example is run as it stands: the transform, its test, its recipe."""

import pathlib
import re
import sys
import types

from token_transforms import test_matrix as matrix

from entropy_rl import token_transforms as tt
from entropy_rl.config import recipes

PAGE = pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md"


def blocks():
    """The page's Python blocks by the file named above each."""
    return dict(re.findall(r"`([\w/]+\.py)`[^\n]*\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def test_the_worked_example_runs(monkeypatch):
    page = blocks()
    source = page["entropy_rl/token_transforms/low_probability.py"]
    assert len(source.splitlines()) < 60

    module = types.ModuleType("entropy_rl.token_transforms.low_probability")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    factory = module.keep_low_probability
    monkeypatch.setitem(tt.TRANSFORMS, factory.__name__, factory)
    monkeypatch.setattr(tt, factory.__name__, factory, raising=False)

    tests = {}
    exec(page["tests/token_transforms/test_low_probability.py"], tests)
    ran = [check() for name, check in list(tests.items()) if name.startswith("test_")]
    assert ran

    entry = eval("{" + page["entropy_rl/config/recipes.py"] + "}", vars(recipes))
    ((name, recipe),) = entry.items()
    assert name not in recipes.RECIPES
    tt.build(recipe["transforms"])


def test_the_example_passes_the_common_matrix(monkeypatch):
    """The matrix needs nothing but the registration."""
    module = {}
    exec(blocks()["entropy_rl/token_transforms/low_probability.py"], module)
    monkeypatch.setitem(tt.TRANSFORMS, "keep_low_probability", module["keep_low_probability"])
    for check in (
        matrix.test_it_changes_something,
        matrix.test_shape_dtype_and_state_stay,
        matrix.test_it_is_exactly_zero_at_masked_tokens_and_does_not_read_them,
        matrix.test_it_is_finite_at_the_edges,
        matrix.test_a_mask_keeps_its_share_in_its_state,
        matrix.test_eight_devices_select_the_same_and_gather_no_statistic,
    ):
        check("keep_low_probability")
