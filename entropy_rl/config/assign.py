"""Any part of a configuration set by its key and a text: fields, the method, the sections whose keys users choose."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from entropy_rl.config.checks import ALGO, SCHEDULE
from entropy_rl.config.defaults import FIELDS
from entropy_rl.config.fields import ENTRIES, near
from entropy_rl.config.recipes import PARTS, options_of, part
from entropy_rl.rules import Rule, check, literal, of_options
from entropy_rl.token_transforms import TRANSFORMS

OPEN = {key: field.rule for key, field in FIELDS.items() if isinstance(field.rule, str)}

_FIRST = ("algo.chain", "data.task", "warmup.task")


def assign(c: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets fields of a configuration, in place.

    Names come first, whatever the order: `algo.objective.name` brings the objective's own options, `algo.chain` the
    options of the transforms that it names and no others, and another `data.task` or `warmup.task` begins without the
    settings of the one before. These can then be set.

    Args:
        c: The configuration.
        assignments: (key, text): "optim.lr", "1e-6". A text is read by the field's type. Under a key that the user
            chooses it is a Python literal or JSON, or else itself. Of a key's texts the last counts; a list has all.

    Raises:
        ValueError: There is no such field, with the nearest ones, or it may not have this value.
    """
    texts: dict[str, list[str]] = {}
    for key, text in assignments:
        texts.setdefault(key, []).append(text)
    with c.unlocked():
        for key in sorted(texts, key=lambda key: not (key.endswith(".name") or key in _FIRST)):
            _assign(c, key, texts[key])


def _assign(c: ConfigDict, key: str, texts: list[str]) -> None:
    field = FIELDS.get(key)
    above = next((name for name in OPEN if key == name or key.startswith(name + ".")), "")
    if field and isinstance(field.rule, Rule):
        section, name = _section(c, key)
        value = _read(key, texts, field.rule)
        if name == "task" and value != section[name]:
            section.settings = ConfigDict()
        section[name] = value
    elif above:
        _assign_open(c, above, key, texts[-1])
    elif key.startswith("algo."):
        _assign_algo(c.algo, key, texts)
    elif any(name.startswith(key + ".") for name in (*FIELDS, "algo.")):
        for name, value in _mapping(key, texts[-1]).items():
            _assign(c, f"{key}.{name}", [value if isinstance(value, str) else repr(value)])
    else:
        raise _unknown(key)


def _section(c: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section that a key is in, and its last part."""
    *path, name = key.split(".")
    for step in path:
        c = c[step]
    return c, name


def _read(key: str, texts: list[str], rule: Rule) -> Any:
    """The value of the last text, or of all if it is a list, once it is known to be legal."""
    value = rule.parse(texts[-1])
    if rule.kind == "list of texts":
        value = tuple(v for text in texts for v in rule.parse(text))
    check(key, value, rule)
    return value


def _mapping(key: str, text: str) -> Mapping[str, Any]:
    value = literal(text)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{key}={text!r} is a section: set its fields, --config.{key}.NAME=…, or all: {{'name': value}}"
        )
    return value


def _assign_open(c: ConfigDict, above: str, key: str, text: str) -> None:
    """`key` is an open section, the name of an entry, or a field within."""
    section, last = _section(c, above)
    if key == above:
        section[last] = ConfigDict(_mapping(key, text))
        return
    *path, name = key.removeprefix(above + ".").split(".")
    shape, fields = OPEN[above], ENTRIES.get(OPEN[above], ({}, ()))[0]
    if shape != "settings" and path:
        inside = path[1] if len(path) > 1 else name
        if inside not in fields or (len(path) > 1 and fields[inside] is not None):
            legal = [f"{above}.{path[0]}.{field}" for field in fields]
            raise ValueError(f"--config.{key}: no such field; near it: {near(key, legal)}")
    section = section[last]
    for step in path:
        if not isinstance(section.get(step), ConfigDict):
            section[step] = ConfigDict()
        section = section[step]
    rule = fields.get(name) if len(path) == 1 else None
    value = _read(key, [text], rule) if rule else literal(text)
    with section.ignore_type():
        section[name] = ConfigDict(value) if isinstance(value, Mapping) else value


def _assign_algo(algo: ConfigDict, key: str, texts: list[str]) -> None:
    _, head, *path = key.split(".")
    if head == "chain" and not path:
        names = [name for text in texts for read in ALGO[head].parse(text) for name in str(read).split(",")]
        check(key, names, ALGO[head])
        algo.transforms = ConfigDict({name: _options(algo, name) for name in names if name in TRANSFORMS})
        algo.chain = tuple(names)
    elif head in ALGO and not path:
        algo[head] = _read(key, texts, ALGO[head])
    elif head in PARTS and path == ["name"]:
        algo[head] = part(PARTS[head], texts[-1], f"algo.{head}")
    elif head in PARTS and len(path) == 1:
        _assign_option(algo[head], key, PARTS[head][algo[head].name], path, texts)
    elif head == "transforms" and len(path) > 1 and path[0] in TRANSFORMS:
        name, *path = path
        if name not in algo.transforms:
            algo.transforms[name] = _options(algo, name)
        _assign_option(algo.transforms[name], key, TRANSFORMS[name], path, texts)
    elif head == "schedule" and len(path) == 3 and path[2] in SCHEDULE:
        name, option, field = path
        with algo.ignore_type():
            moves = algo.schedule.get(name, ConfigDict()).get(option, ConfigDict())
            moves[field] = _read(key, texts, SCHEDULE[field])
            algo.schedule[name] = algo.schedule.get(name, ConfigDict())
            algo.schedule[name][option] = moves
    else:
        raise _unknown(key)


def _options(algo: ConfigDict, name: str) -> ConfigDict:
    """The options of a transform: those that it has, or its defaults."""
    if name in algo.transforms:
        return algo.transforms[name]
    return options_of(name)


def _assign_option(
    section: ConfigDict, key: str, factory: Callable[..., Any], path: list[str], texts: list[str]
) -> None:
    name, *inner = path
    if inner:  # the transform within a transform
        if not isinstance(section.get(name), ConfigDict):
            raise _unknown(key)
        if inner == ["name"]:
            section[name] = part(TRANSFORMS, texts[-1], key.removesuffix(".name"))
        else:
            _assign_option(section[name], key, TRANSFORMS[section[name].name], inner, texts)
        return
    rule = of_options(factory).get(name)
    if rule is None:
        raise _unknown(key)
    section[name] = _read(key, texts, rule)


def _unknown(key: str) -> ValueError:
    legal = [*FIELDS, *(f"algo.{name}" for name in ALGO)]
    for head, table in PARTS.items():
        legal += [f"algo.{head}.{option}" for factory in table.values() for option in ("name", *of_options(factory))]
    options = [f"{name}.{option}" for name, f in TRANSFORMS.items() for option in of_options(f)]
    legal += [f"algo.transforms.{option}" for option in options]
    legal += [f"algo.schedule.{option}.{field}" for option in options for field in SCHEDULE]
    return ValueError(f"--config.{key}: no such field; near it: {near(key, dict.fromkeys(legal))}")
