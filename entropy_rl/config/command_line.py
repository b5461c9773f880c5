"""The configuration on a command line: --config=FILE[:ARGUMENT], and --config.KEY=VALUE for any part of it."""

import importlib.util
import pathlib
import re
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from absl import app, flags
from ml_collections import ConfigDict

from entropy_rl.config.assign import assign
from entropy_rl.config.defaults import FIELDS
from entropy_rl.config.fields import near
from entropy_rl.rules import FLAG

_PACKAGE = pathlib.Path(__file__).parents[1]
SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # as installed, and beside the package in its repository
_ASSIGNMENT = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


class ConfigFlag:
    """The flag --config of a command, and the assignments --config.KEY=VALUE, in any order.

    Its `parse` is the `flags_parser` of `absl.app.run`: absl sees what is left without the assignments.

    Args:
        meaning: the flag's line in --help.
    """

    def __init__(self, meaning: str):
        self._file = flags.DEFINE_string("config", None, f"{meaning} --config.KEY=VALUE sets any part of it.")
        self._assignments: list[tuple[str, str]] = []

    def parse(self, argv: Sequence[str]) -> list[str]:
        """What is left of the command line after its flags."""
        self._assignments, rest = split(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False))
        return app.parse_flags_with_usage(rest)

    def load(self, otherwise: Callable[[], ConfigDict] | None = None) -> ConfigDict:
        """The configuration of the file, or else of `otherwise`, with the assignments made.

        Raises:
            ValueError: In one line: there is no such file, method or field, a value is not legal, or the file failed.
        """
        if self._file.value is not None:
            c = load_file(self._file.value)
        elif otherwise is not None:
            c = otherwise()
        else:
            raise ValueError("--config is missing: a file such as configs/quickstart.py:grpo")
        assign(c, self._assignments)
        return c.lock()


def split(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(the assignments (key, text), the rest of a command line).

    >>> split(["train", "--config=a.py", "--config.seed", "2", "--noconfig.data.chat", "--force"])
    ([('seed', '2'), ('data.chat', 'false')], ['train', '--config=a.py', '--force'])
    """
    found: list[tuple[str, str]] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        arg = left.pop(0)
        match = _ASSIGNMENT.fullmatch(arg)
        if arg == "--":
            return found, [*rest, arg, *left]
        if not match:
            rest.append(arg)
            continue
        no, key, text = match.groups()
        if text is None:
            is_flag = key in FIELDS and FIELDS[key].rule == FLAG
            has_text = not (no or is_flag or not left or left[0].startswith("--"))
            text = left.pop(0) if has_text else ("false" if no else "true")
        found.append((key, text))
    return found, rest


def load_file(source: str) -> ConfigDict:
    """The configuration that `get_config` of a file returns.

    Args:
        source: file.py, or file.py:argument; a name without .py, such as quickstart:kl_cov, is a file of this package.

    Raises:
        ValueError: In one line: there is no such file, it has no `get_config`, or what it raised, and where.
    """
    path, colon, argument = source.partition(":")
    shipped = {file.stem: str(file) for folder in SHIPPED for file in sorted(folder.glob("*.py"))}
    path = path if pathlib.Path(path).is_file() else shipped.get(path, path)
    if not pathlib.Path(path).is_file():
        folder = pathlib.Path(path).parent
        beside = folder if folder.is_dir() and folder != pathlib.Path() else pathlib.Path("configs")
        others = [*map(str, beside.glob("*.py")), *shipped]
        raise ValueError(
            f"--config={source}: there is no file {path!r}" + (f"; near it: {near(path, others)}" if others else "")
        )
    try:
        module = _module(path)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config, which returns the configuration")
        c = module.get_config(argument) if colon else module.get_config()
        if not isinstance(c, ConfigDict):
            raise ValueError(f"get_config returned {type(c).__name__}, not a ConfigDict; start from config.default()")
    except Exception as error:  # the file's own code runs here
        raise ValueError(f"--config={source}: {_in_one_line(error, path)}") from error
    return c


def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("entropy_rl_config_file", path)
    if spec is None or spec.loader is None:
        raise ValueError("it is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_one_line(error: Exception, path: str) -> str:
    """What was raised; of an error that is not a plain ValueError also its type, and the file's line."""
    text = " ".join(str(error).split())
    if type(error) is ValueError:
        return text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path.lstrip("./"))]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {text}{where}"
