"""Every field is what `defaults.FIELDS` says that it may be, in the sections whose keys the user chooses too."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from entropy_rl.config.defaults import FIELDS
from entropy_rl.rewards.verify import OWN_KIND
from entropy_rl.rules import TEXT, Rule, check, number, whole

NAME = re.compile(r"[^./\s]+")  # of an evaluation set, a part of a mixture or of the reward: it becomes part of a key
WEIGHT = number()

# The fields of one entry of an open section that holds entries, and which of them have to be there.
ENTRIES: dict[str, tuple[dict[str, Rule | None], tuple[str, ...]]] = {
    "sources": ({"task": TEXT, "settings": None}, ("task",)),
    "mixture": ({"task": TEXT, "settings": None, "weight": whole(least=1)}, ("task",)),
    "parts": ({"function": TEXT, "weight": WEIGHT}, ("function", "weight")),
}


def check_fields(c: ConfigDict) -> None:
    """Refuses a field that is missing, unknown, of another type, out of its range or not finite; not those of `algo`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    left = dict(FIELDS)
    for key, value in _leaves(c.to_dict()):
        field = left.pop(key, None)
        if field is None:
            raise ValueError(f"{key} is no field of the configuration; near it: {near(key, FIELDS)}")
        if isinstance(field.rule, Rule):
            check(key, value, field.rule)
        else:
            _check_open(key, value, field.rule)
    if left:
        raise ValueError(f"{next(iter(left))} is missing: start from entropy_rl.config.default()")


def near(key: str, legal: Iterable[str], n: int = 5) -> str:
    """The legal keys that look most like this one: by their last part, or as a whole.

    >>> near("optim.lerning_rate", ["optim.lr", "warmup.lr", "optim.b1", "seed"], 1)
    'optim.lr'
    """

    def likeness(other: str) -> float:
        def ratio(a: str, b: str) -> float:
            return difflib.SequenceMatcher(None, a, b).ratio()

        section, _, name = key.rpartition(".")
        other_section, _, other_name = other.rpartition(".")
        return ratio(name, other_name) + ratio(section, other_section) + (name == other_name) + ratio(key, other)

    return ", ".join(sorted(legal, key=likeness, reverse=True)[:n])


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value) of every field but those of `algo`; an open section is one field."""
    for name, value in section.items():
        key = prefix + name
        if key == "algo":
            continue
        is_open = key in FIELDS and isinstance(FIELDS[key].rule, str)
        if isinstance(value, Mapping) and not is_open:
            yield from _leaves(value, key + ".")
        else:
            yield key, value


def _check_open(key: str, value: Any, shape: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}={value!r} must be a section: {FIELDS[key].meaning}")
    if shape == "settings":
        return check_settings(value, key)
    fields, needed = ENTRIES[shape]
    for name, entry in value.items():
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{key}: the name {name!r} becomes part of a key, so it must not be empty or have '/', '.' or spaces"
            )
        _check_entry(f"{key}.{name}", entry, fields, needed)
    return None


def _check_entry(key: str, entry: Any, fields: Mapping[str, Rule | None], needed: tuple[str, ...]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{key}={entry!r} must be {{{', '.join(fields)}}}")
    for name in entry:
        if name not in fields:
            raise ValueError(f"{key}.{name} is no field of it; it may have {', '.join(fields)}")
    for name in needed:
        if name not in entry:
            raise ValueError(f"{key}.{name} is missing: it must be {fields[name]}")
    for name, value in entry.items():
        rule = fields[name]
        if rule is not None:
            check(f"{key}.{name}", value, rule)
        elif not isinstance(value, Mapping):
            raise ValueError(f"{key}.{name}={value!r} must be a section of settings")
        else:
            check_settings(value, f"{key}.{name}")
    if "function" in entry and not OWN_KIND.fullmatch(entry["function"]):
        raise ValueError(
            f'{key}.function={entry["function"]!r}: {key} must be {{function: "module:function", weight: number}}'
        )


def check_settings(value: Any, key: str) -> None:
    """Refuses numbers that are not finite, and values that a file could not hold, however deep they are.

    Raises:
        ValueError: Names the key and the value.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_settings(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_settings(inner, f"{key}[{i}]")
    elif isinstance(value, float):
        check(key, value, number())
    elif not (value is None or isinstance(value, str | bool | int)):
        raise ValueError(
            f"{key}={value!r} must be a text, a number, true or false, None, or a list or section of these"
        )
