"""What a value of the configuration may be: a type, a range, a choice. Fields and options of methods have one each.

A number is judged as float32, which is what the arrays that read it hold: 1e39 is infinite there, and 1e-50 is 0.
"""

import ast
import functools
import inspect
import json
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
Made = TypeVar("Made")


_INT32 = 2**31


class Rule(NamedTuple):
    """What one value may be.

    Attributes:
        kind: "number", "whole number", "true or false", "text", or "list of texts" (a list or tuple, none empty).
        least: the smallest legal number; None: any.
        above: the legal numbers are above this one; None: any.
        most: the largest legal number; None: any.
        below: the legal numbers are below this one; None: any.
        choices: the legal texts; (): any.
        optional: None is legal too.
    """

    kind: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False

    def fault(self, value: Any) -> str:
        """What the value must be; "" if it is that.

        >>> number(above=0, most=1).fault(1.5), number(above=0, most=1).fault(0.5)
        ('must be above 0 and at most 1', '')
        """
        if value is None and self.optional:
            return ""
        if not self._has_kind(value):
            return f"must be {self}"
        if "number" in self.kind and not np.isfinite(_float32(value)):
            return f"must be a finite number{self._range(', ')}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if not self._in_range(value):
            return f"must be{self._range(' ')}"
        if self.kind == "whole number" and self.most is None and not -_INT32 <= value < _INT32:
            return f"must be below {_INT32}, since arrays count in 32 bits"
        return ""

    def parse(self, text: str) -> Any:
        """The value that a text on the command line stands for, or the text itself if it is not of this kind.

        >>> whole().parse("12"), number().parse("1e-6"), FLAG.parse("true"), TEXTS.parse("###"), TEXT.parse("12")
        (12, 1e-06, True, ('###',), '12')
        """
        if self.optional and text in ("None", "none", "null"):
            return None
        if self.kind == "text":
            return text
        if self.kind == "true or false":
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        if self.kind == "list of texts":
            value = literal(text)
            return tuple(value) if isinstance(value, list | tuple) else (value,)
        try:
            return int(text) if self.kind == "whole number" else float(text)
        except ValueError:
            return text

    def __str__(self) -> str:
        """The rule in words.

        >>> str(number(least=0, below=1)), str(one_of("full", "none"))
        ('a number, from 0 to below 1', 'one of full, none')
        """
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        name = self.kind if self.kind.startswith("true") else f"a {self.kind}"
        name = name if self.kind != "list of texts" else "a list of texts, none of them empty"
        return f"{name}{self._range(', ')}" + (", or None" if self.optional else "")

    def _has_kind(self, value: Any) -> bool:
        if isinstance(value, bool | np.bool_):
            return self.kind == "true or false"
        if self.kind == "list of texts":
            return isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
        kinds = {"number": numbers.Real, "whole number": numbers.Integral, "text": str}
        return self.kind in kinds and isinstance(value, kinds[self.kind])

    def _in_range(self, value: Any) -> bool:
        if "number" not in self.kind:
            return True
        return all(
            (self.least is None or x >= self.least)
            and (self.above is None or x > self.above)
            and (self.most is None or x <= self.most)
            and (self.below is None or x < self.below)
            for x in (value, value if self.kind == "whole number" else _float32(value))
        )

    def _range(self, before: str) -> str:
        low = "" if self.least is None else f"{self.least} or above"
        low = low if self.above is None else f"above {self.above}"
        high = "" if self.most is None else f"at most {self.most}"
        high = high if self.below is None else f"below {self.below}"
        if self.least is not None and high:
            both = f"from {self.least} to {high.removeprefix('at most ')}"
        else:
            both = " and ".join(bound for bound in (low, high) if bound)
        return f"{before}{both}" if both else ""


def number(
    least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Rule:
    """A finite number within these bounds."""
    return Rule("number", least, above, most, below)


def whole(least: float | None = None, most: float | None = None) -> Rule:
    """A whole number within these bounds."""
    return Rule("whole number", least, most=most)


def one_of(*names: str) -> Rule:
    """One of these texts."""
    return Rule("text", choices=names)


TEXT, TEXTS, FLAG = Rule("text"), Rule("list of texts"), Rule("true or false")

# Types of options that several methods have.
Share = Annotated[float, number(above=0, most=1)]
From0 = Annotated[float, number(least=0)]
From0To1 = Annotated[float, number(least=0, most=1)]

_PLAIN = {int: whole(), float: number(), str: TEXT, bool: FLAG}  # of an option that has only a type


def check(key: str, value: Any, rule: Rule) -> None:
    """Refuses a value.

    Raises:
        ValueError: The rule does not allow it; names the key, the value and what would be right.
    """
    if fault := rule.fault(value):
        raise ValueError(f"{key}={value!r} {fault}")


@functools.cache
def of_options(function: Callable[..., Any]) -> Mapping[str, Rule]:
    """The rules of a function's parameters: that of their `Annotated` type, or what their plain type allows.

    Parameters of other types, such as arrays, have none.

    >>> def f(share: Share = 0.2, dual: float | None = None, name: str = ""): ...
    >>> {key: str(rule) for key, rule in of_options(f).items()}
    {'share': 'a number, above 0 and at most 1', 'dual': 'a number, or None', 'name': 'a text'}
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found: dict[str, Rule] = {}
    for name in inspect.signature(function).parameters:
        hint = hints.get(name, object)
        optional = type(None) in typing.get_args(hint)
        kinds = [a for a in typing.get_args(hint) if a is not type(None)] if optional else [hint]
        rule = next((r for r in getattr(kinds[0], "__metadata__", ()) if isinstance(r, Rule)), _PLAIN.get(kinds[0]))
        if rule is not None and len(kinds) == 1:
            found[name] = rule._replace(optional=optional)
    return found


def check_options(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    """Refuses values of options that the function's annotations do not allow.

    Raises:
        ValueError: Names `key`.option, its value and what would be right.
    """
    rules = of_options(function)
    for option, value in options.items():
        if option in rules:
            check(f"{key}.{option}", value, rules[option])


def checked(key: str) -> Callable[[Callable[P, Made]], Callable[P, Made]]:
    """A decorator: `check_options` at each call of a factory, whether a config or a notebook calls it.

    Args:
        key: the config section that has the options; the name of the factory is added to it if it ends in a dot.
    """

    def decorate(factory: Callable[P, Made]) -> Callable[P, Made]:
        @functools.wraps(factory)
        def call(*args: P.args, **kwargs: P.kwargs) -> Made:
            given = inspect.signature(factory).bind(*args, **kwargs).arguments
            check_options(factory, given, key + factory.__name__ if key.endswith(".") else key)
            return factory(*args, **kwargs)

        return call

    return decorate


def literal(text: str) -> Any:
    """A text of the command line as a value: a Python literal, JSON, or else the text itself.

    >>> literal("2"), literal("1e-3"), literal("true"), literal("('a', 'b')"), literal('{"a": null}'), literal("gsm8k")
    (2, 0.001, True, ('a', 'b'), {'a': None}, 'gsm8k')
    """
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
    return text


def _float32(value: Any) -> float:
    with np.errstate(over="ignore"):
        try:
            return float(np.float32(value))
        except OverflowError:  # a whole number beyond float64
            return float("inf")
