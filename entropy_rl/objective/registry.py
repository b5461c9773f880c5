"""Names to factories: a config chooses advantages, objectives and token transforms by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from entropy_rl import rules

Made = TypeVar("Made")

# How a config names a part: by its name, or by a pair (name, {option: value}).
Spec = str | tuple[str, Mapping[str, Any]]


def check_spec(
    table: Mapping[str, Callable[..., Made]],
    name: str,
    kwargs: Mapping[str, Any],
    key: str,
    given: tuple[str, ...] = (),
) -> Callable[..., Made]:
    """The callable that `name` stands for, after a check of its options: their names, types and ranges.

    Args:
        table: the callables by name.
        name: the name in the config.
        kwargs: its options in the config.
        key: the config key, for messages.
        given: parameters that the caller passes itself and a config may not set.

    Returns:
        table[name].

    Raises:
        ValueError: If the name or an option is unknown, an option without a default is missing, or one has a value
            that its annotation does not allow (see `rules.of_options`).
    """
    if name not in table:
        raise ValueError(unknown_name(table, name, key))
    parameters = {k: p for k, p in inspect.signature(table[name]).parameters.items() if k not in given}
    for option in kwargs:
        if option not in parameters:
            legal = ", ".join(parameters) or "none"
            raise ValueError(f"{key}: {name} has no option {option!r}; legal options: {legal}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in kwargs:
            raise ValueError(f"{key}: {name} needs the option {option!r}, which is missing")
    rules.check_options(table[name], kwargs, f"{key}.{name}" if key == "algo.transforms" else key)
    return table[name]


def unknown_name(table: Mapping[str, Callable[..., Any]], name: str, key: str) -> str:
    """The message about a name that the table does not have: the nearest one, and all of them."""
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{key}: unknown name {name!r}{hint}; legal names: {', '.join(sorted(table))}"


def split_spec(spec: Spec, key: str) -> tuple[str, dict[str, Any]]:
    """A name, or a pair (name, options), as a pair.

    Args:
        spec: what the config holds.
        key: the config key, for messages.

    Raises:
        ValueError: If `spec` is neither.
    """
    if isinstance(spec, str):
        return spec, {}
    if len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], Mapping):
        return spec[0], dict(spec[1])
    raise ValueError(f"{key}: got {spec!r}, expected a name or a pair (name, {{option: value}})")
