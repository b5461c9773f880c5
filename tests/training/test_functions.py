"""A user's function that is not there is found before the model is opened, where graders would look for it."""

import pathlib
import sys

import pytest

from entropy_rl import config, start
from entropy_rl.training.checks import check_functions


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module on Python's path, which is never imported here."""
    (tmp_path / "own_rewards.py").write_text("def f(response, answer):\n    return 1.0\n\nNUMBER = 3\n")
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_rewards"


@pytest.mark.parametrize(
    "function, message",
    [
        ("nomod:f", r"nomod"),
        ("own_rewards:g", r"has no attribute 'g'"),
        ("own_rewards:NUMBER", r"is a int, not a function"),
        ("broken_rewards:f", r"ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("where", ["reward", "data", "evaluation"])
def test_what_is_not_there_is_named_by_its_key(module: str, function: str, message: str, where: str):
    c = config.default()
    if where == "reward":
        c.reward.own.b = {"function": function, "weight": 0.1}
        key = r"reward\.own\.b\.function"
    elif where == "data":
        c.data.settings.kind = function
        key = r"data\.settings\.kind"
    else:
        c.eval.sets.mine = {"task": "mine.jsonl", "settings": {"kind": function}}
        key = r"eval\.sets\.mine\.settings\.kind"
    with pytest.raises(ValueError, match=rf"{key}='{function}': (.|\n)*{message}"):
        check_functions(c)


def test_what_is_there_passes_and_is_not_imported_here(module: str):
    c = config.default()
    c.reward.own.b = {"function": f"{module}:f", "weight": 0.1}
    c.eval.sets.mine = {"task": "mine.jsonl", "settings": {"kind": "math"}}
    check_functions(c)
    assert module not in sys.modules


def test_it_comes_before_the_model_and_the_warm_up():  # case s15
    c = config.default()
    c.reward.own.b, c.warmup.updates, c.model.source = {"function": "nomod:f", "weight": 0.1}, 600, "no/such/model"
    c.mesh.data = 1
    with pytest.raises(ValueError, match=r"reward\.own\.b\.function='nomod:f': .*could not be imported"):
        start.prepare(c)
