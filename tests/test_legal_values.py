"""What a value may be: types, ranges as float32 sees them, choices, and how a text of the command line is read."""

from typing import Annotated, Any

import numpy as np
import pytest

from entropy_rl import rules
from entropy_rl.rules import FLAG, TEXT, TEXTS, number, one_of, whole

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "rule, right, wrong",
    [
        (number(), [0, -1.5, np.float32(2)], [NAN, INF, -INF, 1e39, 10**400, "1", None, True, [1]]),
        (number(above=0), [1e-30, 1], [0, -1, 1e-50]),  # 1e-50 is 0 as float32
        (number(least=0, below=1), [0, 0.999], [-1e-9, 1, 1 - 1e-12]),
        (number(above=0, most=1), [1.0, 1e-6], [0.0, 1.0001]),
        (whole(), [0, -5, np.int64(3)], [1.0, NAN, "1", None, False]),
        (whole(least=1, most=3), [1, 3], [0, 4]),
        (one_of("a", "b"), ["a"], ["c", "", None, 1, ["a"]]),
        (TEXT, ["", "a"], [None, 1, ("a",)]),
        (TEXTS, [(), ["a"], ("a", "\n")], [None, 5, "", "a", ("",), (None,), ("a", 1)]),
        (FLAG, [True, np.bool_(False)], [0, 1, "true", None]),
        (number()._replace(optional=True), [None, 1.0], [NAN, "None"]),
    ],
)
def test_right_and_wrong_values(rule: rules.Rule, right: list[Any], wrong: list[Any]):
    for value in right:
        assert not rule.fault(value), value
        rules.check("a.b", value, rule)
    for value in wrong:
        assert rule.fault(value).startswith("must be "), value
        with pytest.raises(ValueError, match=r"a\.b=.* must be "):
            rules.check("a.b", value, rule)


@pytest.mark.parametrize(
    "rule, text, value",
    [
        (number(), "1e-6", 1e-6),
        (number(), "fast", "fast"),  # refused by the check, with the rule in words
        (whole(), "1_000", 1000),
        (whole(), "1.5", "1.5"),
        (FLAG, "False", False),
        (FLAG, "maybe", "maybe"),
        (TEXT, "12", "12"),
        (TEXTS, "('a', '5')", ("a", "5")),
        (TEXTS, '["a"]', ("a",)),
        (TEXTS, "###", ("###",)),
        (TEXTS, "None", (None,)),
        (TEXTS, "()", ()),
        (number()._replace(optional=True), "None", None),
    ],
)
def test_texts_of_the_command_line(rule: rules.Rule, text: str, value: Any):
    assert rule.parse(text) == value


def test_a_factory_checks_its_options_wherever_it_is_called():
    @rules.checked("algo.transforms.")
    def keep(
        share: rules.Share, name: Annotated[str, one_of("x", "y")] = "x", top: float | None = None, inner: Any = None
    ) -> float:
        """Doc."""
        return share

    assert keep(0.5, top=None, inner=object()) == 0.5
    assert keep.__doc__ == "Doc."
    for call, message in [
        (lambda: keep(1.5), r"algo\.transforms\.keep\.share=1\.5 must be above 0 and at most 1"),
        (lambda: keep(share=NAN), r"algo\.transforms\.keep\.share=nan must be a finite number, above 0 and at most 1"),
        (lambda: keep(0.5, "z"), r"algo\.transforms\.keep\.name='z' must be one of x, y"),
        (lambda: keep(0.5, top=INF), r"algo\.transforms\.keep\.top=inf must be a finite number"),
        (lambda: keep(0.5, top="1"), r"algo\.transforms\.keep\.top='1' must be a number, or None"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
