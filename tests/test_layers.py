"""Imports run one way: each module imports only from its own layer or from one above it (ARCHITECTURE.md)."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "entropy_rl"
LAYERS = (
    """blocks masked selection divergence registry entropy head covariance advantages objectives importance
    token_transforms law recipes estimators""",
    "host distributed model",
    "packing sampler rollouts server data rewards checkpoint jsonl metrics preemption",
    "step config papers engine policy warmup experience evaluation loop",
    "train analyze evaluate evaluation_report preflight",
)
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer.split()}


def part(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path):
    """Parts of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "entropy_rl":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("entropy_rl."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("entropy_rl."))


def test_every_module_has_a_layer():
    assert {part(p) for p in PACKAGE.rglob("*.py")} - {"__init__"} == LEVEL.keys()


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if part(path) != "__init__"
        for name in imported(path)
        if LEVEL[name] > LEVEL[part(path)]
    ]
    assert not wrong, wrong


def test_only_the_engine_and_the_notebook_policy_call_jit_for_the_model():
    for name in ("step", "sampler", "loop", "warmup"):
        assert "jax.jit" not in (PACKAGE / f"{name}.py").read_text(), name
