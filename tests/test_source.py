"""Nothing of the package evaluates or unpickles text from outside; the places named here are the only exceptions."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "entropy_rl"

MODULES = {"cloudpickle", "code", "dill", "joblib", "marshal", "pickle", "runpy", "shelve"}
BUILTINS = {"__import__", "compile", "eval", "exec"}
# A call of one of these names, whatever it belongs to: sympy's parsers and pandas' query evaluate their text.
CALLS = {"parse_expr", "query", "read_pickle", "sympify", "unsafe_load", "full_load"}
FLAGS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False}

# file -> {what: why it is harmless}
ALLOWED: dict[str, dict[str, str]] = {
    "__main__.py": {"import runpy": "runs the module of one of this package's commands"},
    "__init__.py": {"import_module": "a part of this package, one of `__all__`"},
    "rewards/grader.py": {"import pickle": "writes what the trainer itself made; reads nothing"},
    "rewards/verify.py": {"import_module": "the verifier that the user's configuration names as module:function"},
    "rewards/worker.py": {"import pickle": "reads the trainer's pipe, inside the fence"},
}


def faults(tree: ast.AST) -> set[str]:
    """What a file does that could run code which came with data, in words of `ALLOWED`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.add(f"import {node.module}")
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.add(node.id)  # the name alone: `f = eval` is as bad as a call
        elif isinstance(node, ast.Attribute) and node.attr in BUILTINS and "builtins" in ast.unparse(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call):
            found |= _call(node)
    return found


def _call(node: ast.Call) -> set[str]:
    name = ast.unparse(node.func)
    given = {k.arg: k.value for k in node.keywords if k.arg}
    found = {name} if name.split(".")[-1] in CALLS else set()
    for flag, bad in FLAGS.items():
        # A value that is not a constant cannot be seen to be harmless.
        if flag in given and not (isinstance(given[flag], ast.Constant) and given[flag].value is not bad):
            found.add(f"{flag}={bad}")
    if name == "torch.load" and "weights_only" not in given:
        found.add("torch.load")
    if name in {"yaml.load", "yaml.load_all"} and not ast.unparse(given.get("Loader", ast.Constant(None))).endswith(
        "SafeLoader"
    ):
        found.add(name)
    if name.endswith("import_module") and not (node.args and isinstance(node.args[0], ast.Constant)):
        found.add("import_module")
    return found


def test_nothing_that_came_from_outside_is_run_but_in_the_fenced_worker():
    """A model, a data file, a checkpoint and the network are text and numbers here, never code."""
    found = {str(path.relative_to(PACKAGE)): faults(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert {path: what for path, what in found.items() if what} == {path: set(why) for path, why in ALLOWED.items()}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "f = exec",
        "builtins.eval(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import pickle",
        "from marshal import loads",
        "import pickle as p",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "pd.read_pickle(path)",
        "sympy.sympify(text)",
        "importlib.import_module(name)",
    ],
)
def test_the_reading_of_the_source_sees(line):
    assert faults(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "jnp.load(path)",
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "re.compile(pattern)",
        "ast.literal_eval(text)",
        "jitted.lower(x).compile()",
    ],
)
def test_the_reading_of_the_source_lets_pass(line):
    assert not faults(ast.parse(line))
