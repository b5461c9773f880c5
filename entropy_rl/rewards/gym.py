"""The verifiers of reasoning-gym, none of which evaluates a text.

The library's own verifiers of some tasks call `eval`, or sympy's `parse_expr`, which calls it, on the model's answer or
on the problem. Here these tasks' `score_answer` runs as it is written, except that the names of such functions stand
for others, which read the text and run nothing. A task of a later version of the library that calls one, and is not in
this file's table, is refused.
"""

import ast
import difflib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from entropy_rl.rewards import expressions

_LITERAL = {"eval": ast.literal_eval}
# Task -> what a name stands for. "sympy" is the library, by any name, with another parse_expr.
_INSTEAD: dict[str, dict[str, Any]] = {
    "binary_matrix": _LITERAL,
    "n_queens": _LITERAL,
    "number_sorting": _LITERAL,
    "spiral_matrix": _LITERAL,
    "string_insertion": _LITERAL,
    "bitwise_arithmetic": {"eval": expressions.arithmetic},
    "countdown": {"parse_expr": expressions.parse},
    "puzzle24": {"parse_expr": expressions.parse},
    "intermediate_integration": {"sympy": None},
    "polynomial_multiplication": {"sp": None},
    "simple_integration": {"sympy": None},
}
_EVALUATE = ("eval", "exec", "compile", "__import__")
# Libraries whose functions evaluate, load or run what they are given.
_LIBRARIES = ("sympy", "pickle", "marshal", "shelve", "importlib", "subprocess", "os", "runpy", "code", "yaml")


def verifier(task: str) -> Callable[[str, Any], float]:
    """The function (answer, entry) -> points of a task.

    Raises:
        ImportError: If reasoning-gym is not installed.
        ValueError: If it has no such task, or its verifier evaluates texts in a way that is not known here.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(f"rewards of kind 'reasoning_gym:{task}' need it: pip install reasoning-gym") from error
    from reasoning_gym.factory import DATASETS

    kind = f"reward kind 'reasoning_gym:{task}'"
    if task not in DATASETS:
        near = ", ".join(difflib.get_close_matches(task, DATASETS, n=3)) or "none"
        raise ValueError(f"{kind}: reasoning-gym has no such task; near it: {near}")
    if task == "composite":
        raise ValueError(f"{kind} passes answers to other tasks' verifiers: use the kind of the entry's task")
    instead = _INSTEAD.get(task, {})
    unknown = [name for name in evaluators(DATASETS[task][0]) if name not in instead]
    if unknown:
        raise ValueError(
            f"{kind}: its verifier evaluates text: it calls {', '.join(unknown)}. A verifier must not run what a model "
            "wrote: take another task, or write a reward function of your own"
        )
    judge = reasoning_gym.get_score_answer_fn(task)
    return _with(judge, instead) if instead else judge


def evaluators(dataset: type) -> list[str]:
    """The names by which a data set's `score_answer`, and what it calls in the library, reach eval and the like."""
    return sorted({name for function in _reached(dataset) for name in _named(function) if _evaluates(function, name)})


def _evaluates(function: types.FunctionType, name: str) -> bool:
    found = function.__globals__.get(name)
    if found is None:
        return name in _EVALUATE
    module = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None) or ""
    return name in _EVALUATE or module.partition(".")[0] in _LIBRARIES


def _reached(dataset: type) -> set[types.FunctionType]:
    """`score_answer` and the functions, methods and classes of reasoning-gym that it names, and so on."""
    todo: list[Any] = [inspect.getattr_static(dataset, "score_answer")]
    reached: set[types.FunctionType] = set()
    while todo:
        found = todo.pop()
        found = getattr(found, "__func__", found)  # of a method, static or not
        if not (getattr(found, "__module__", None) or "").startswith("reasoning_gym"):
            continue
        if inspect.isclass(found):
            todo += vars(found).values()
        elif isinstance(found, types.FunctionType) and found not in reached:
            reached.add(found)
            for name in _named(found):
                todo += [found.__globals__.get(name), inspect.getattr_static(dataset, name, None)]
    return reached


def _named(function: types.FunctionType) -> Iterator[str]:
    """The names in a function and in those defined inside it."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _with(judge: types.MethodType, instead: dict[str, Any]) -> Callable[[str, Any], float]:
    """The same method, and functions of its module that it calls, with other values of some names."""
    import sympy

    own = judge.__func__.__globals__
    safe = types.SimpleNamespace(**{**vars(sympy), "parse_expr": expressions.parse})
    names = own | {name: safe if value is None else value for name, value in instead.items()}
    for name, value in own.items():
        if isinstance(value, types.FunctionType) and value.__globals__ is own:
            names[name] = types.FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
    function = judge.__func__
    score = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    return types.MethodType(score, judge.__self__)
