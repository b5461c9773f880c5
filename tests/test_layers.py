"""Imports run one way: a folder or module imports only what is written before it in `ORDER` (ARCHITECTURE.md)."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "entropy_rl"
ORDER = [
    "stats",
    "runtime",
    "model",
    "entropy",
    "covariance",
    "law",
    "objective",
    "token_transforms",
    "rewards",
    "config",
    "data",
    "record",
    "sampling",
    "training",
    "policy",
    "evaluation",
    "loop",
    "train",
    "evaluate",
    "analyze",
    "preflight",
]
LEVEL = {name: i for i, name in enumerate(ORDER)}


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path):
    """The rooms of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "entropy_rl":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("entropy_rl."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("entropy_rl."))


def test_every_room_has_its_place_in_the_order():
    assert {room(p) for p in PACKAGE.rglob("*.py")} - {"__init__"} == set(ORDER)


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if room(path) != "__init__"
        for name in imported(path)
        if LEVEL[name] > LEVEL[room(path)]
    ]
    assert not wrong, wrong


def test_only_the_engine_and_the_notebook_policy_call_jit_for_the_model():
    for name in ("training/step", "sampling/slots", "loop", "training/warmup"):
        assert "jax.jit" not in (PACKAGE / f"{name}.py").read_text(), name
