"""Imports run one way: a folder or module imports only what is written before it in `ORDER` (ARCHITECTURE.md)."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "entropy_rl"
ORDER = [
    "rules",
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
    "start",
    "report",
    "loop",
    "train",
    "evaluate",
    "analyze",
    "sweep",
    "preflight",
    "__main__",
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


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The names that are on a circle or lead to one."""
    left = {name: set(targets) - {name} for name, targets in arrows.items()}
    while done := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in done}
    return sorted(left)


def test_no_imports_form_a_circle():
    """Neither between folders nor between modules. Imports in functions count, and those for type checkers do not."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    arrows: dict[str, set[str]] = {name: set() for name in modules}
    rooms: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        skipped = {inner for block in for_types for inner in ast.walk(block)}
        for node in set(ast.walk(tree)) - skipped:
            targets = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                targets = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                targets = [t for t in targets[1:] if t in modules] or targets[:1]
            arrows[name] |= {t for t in targets if t in modules}
        rooms.setdefault(room(path), set()).update(imported(path))
    assert not circle(arrows)
    assert not circle(rooms)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


JITS = {"training/engine.py", "training/rows.py", "sampling/batching.py", "sampling/local.py", "policy.py"}


def test_few_files_call_jit_above_the_model():
    """The engine, the sampler and the notebook's policy know how arrays are placed; rows.py reduces a rollout."""
    above = ORDER[ORDER.index("sampling") :]
    above.remove("preflight")  # traces the engine's functions and compiles them for other devices
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if room(path) in above and "jax.jit" in path.read_text()
    }
    assert found == JITS


def test_files_and_functions_are_short():
    """A file has at most 400 lines and a function at most 70."""
    long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if (lines := len(text.splitlines())) > 400:
            long.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 70:
                long.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert not long, long


def test_only_the_mesh_spells_its_axes():
    """The names "data", "fsdp" and "tensor" as subscripts, in tuples and as arguments are those of runtime/mesh.py."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "mesh.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            values: list[ast.expr] = []
            if isinstance(node, ast.Subscript):
                values = [node.slice]
            elif isinstance(node, ast.Tuple | ast.Call):
                values = node.elts if isinstance(node, ast.Tuple) else node.args
            names = [v.value for v in values if isinstance(v, ast.Constant)]
            wrong += [f"{path.relative_to(PACKAGE)}:{node.lineno}" for name in names if name in ("fsdp", "tensor")]
    assert not wrong, wrong
