"""The verifiers of reasoning-gym run no text, and give the points that the library's own verifiers give."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym
import sympy
from reasoning_gym.factory import DATASETS

from entropy_rl.rewards import expressions, gym, score

# Python files of the library that call eval and the like, and why that is no verifier's doing.
CALLS = {
    "algebra/intermediate_integration.py": "replaced",
    "algebra/polynomial_multiplication.py": "replaced",
    "algebra/simple_integration.py": "replaced",
    "algorithmic/binary_matrix.py": "replaced",
    "algorithmic/number_sorting.py": "replaced",
    "algorithmic/spiral_matrix.py": "replaced",
    "algorithmic/string_insertion.py": "replaced",
    "arithmetic/bitwise_arithmetic.py": "replaced",
    "games/countdown.py": "replaced",
    "games/n_queens.py": "replaced",
    "games/puzzle24.py": "replaced",
    "arithmetic/basic_arithmetic.py": "makes problems",
    "arithmetic/gsm_symbolic/generators_00_49.py": "makes problems",
    "arithmetic/gsm_symbolic/generators_50_99.py": "makes problems",
    "code/codeio.py": "makes problems",
    "logic/propositional_logic.py": "its own parse_expr, which runs nothing",
}
TASKS = sorted(gym._INSTEAD)
# Formulas as a model may write them: right ones in another form, wrong ones, and what is not a formula.
FORMULAS = [
    "2*(3+4)",
    "4!",
    "x**2 + 2*x*y",
    "(1+2",
    "",
    "x",
    "1/0",
    "E**x + C",
    "exp(x) + C",
    "sin(x)/3!",
    "7 ^ 3",
    "2x",
]
FORMULAS += [
    "0.2[1]",
    "abs(-24)",
    "[1, 2]",
    "f(x)",
    "-(3*x**2)/2",
    "sqrt(x)*log(x) + C",
    "I*x",
    "24.0",
    "٣",
    "\x00",
]


def entries(task):
    return list(reasoning_gym.create_dataset(task, seed=7, size=4))


def answers(task, entry, others):
    """Right, wrong and malformed answers to an entry, in the forms that the library's verifiers know."""
    right = entry["answer"] or ""
    lines = right.split("\n")
    forms = [right, f" {right} ", right + "0", right[1:], right[::-1], f"({right})", f"-({right})", f"{right} + 0"]
    forms += [str(list(right)), str(right.split()), str([line.split() for line in lines]), repr(right), f"[{right}"]
    forms += [str([list(line.replace(" ", "")) for line in lines]), right.replace("'", '"'), "[['_', 'Q']]", "[[1, 0]]"]
    if any("parse_expr" in name or value is None for name, value in gym._INSTEAD[task].items()):
        forms.remove(repr(right))  # sympy evaluates a text in quotes once more; here it is no formula
    return forms + [other["answer"] or "" for other in others] + FORMULAS + formulas_from(entry)


def formulas_from(entry):
    """Solutions to puzzles whose entries have none, and the same with an error."""
    numbers = (
        entry["metadata"].get("numbers") if entry["metadata"]["source_dataset"] in ("countdown", "puzzle24") else []
    )
    made = [f" {operator} ".join(map(str, numbers)) for operator in ("+", "*", "-", "/")]
    if "expression" in entry["metadata"]:
        made.append(entry["metadata"]["expression"])
    return made


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[pytest.mark.slow] if t == "intermediate_integration" else []) for t in TASKS]
)
def test_the_points_are_the_librarys(task):
    ours, theirs, found = gym.verifier(task), reasoning_gym.get_score_answer_fn(task), entries(task)
    assert getattr(ours, "__func__", ours) is not theirs.__func__
    seen = set()
    for i, entry in enumerate(found):
        for answer in answers(task, entry, found[i + 1 : i + 3]):
            points = ours(answer, entry)
            assert points == theirs(answer, entry), (task, answer)
            seen.add(points)
    assert 1.0 in seen and len(seen) > 1


@pytest.mark.parametrize("task", TASKS)
def test_the_rewards_of_right_answers_are_one(task):
    for entry in entries(task)[:3]:
        right = entry["metadata"].get("expression") if task == "countdown" else entry["answer"]
        assert task == "puzzle24" or score(f"reasoning_gym:{task}", f"\\boxed{{{right}}}", entry) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_no_answer_is_run(task, tmp_path):
    """The library's own verifiers run it, where they call eval on the answer."""
    made, entry = tmp_path / "made", entries(task)[0]
    codes = [
        f"__import__('pathlib').Path({str(made)!r}).touch()",
        f"[open({str(made)!r}, 'w') for _ in [1]]",
        f"x.__class__.__mro__[-1].__subclasses__() and open({str(made)!r}, 'w')",
        f'sqrt("open({str(made)!r}, chr(119))")',
        f'Symbol("x").subs("x", "open({str(made)!r}, chr(119))")',
    ]
    judge = gym.verifier(task)
    for code in codes:
        assert judge(code, entry) < 1.0
    assert not made.exists()
    # That this test shows something: the library runs the first one, unless it is the problem that it evaluates.
    reasoning_gym.get_score_answer_fn(task)(codes[0], entry)
    assert made.exists() == (task not in ("bitwise_arithmetic", "number_sorting"))


@pytest.mark.parametrize("task, field", [("bitwise_arithmetic", "problem"), ("simple_integration", "integrand")])
def test_no_problem_is_run(task, field, tmp_path):
    """A problem may come from a file."""
    entry = entries(task)[0]
    entry["metadata"][field] = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch() or 1"
    assert gym.verifier(task)("1", entry) < 1.0
    assert not (tmp_path / "made").exists()


def test_every_task_that_evaluates_is_known():
    """Of the installed version; a task that evaluates and is new is refused until it is in the table."""
    found = {task: gym.evaluators(dataset) for task, (dataset, _) in DATASETS.items()}
    assert {task: names for task, names in found.items() if names} == {
        task: sorted(names) for task, names in gym._INSTEAD.items()
    }


def test_every_file_that_evaluates_is_known():
    """The same by a search of the source, which also sees what no name in a verifier leads to."""
    root = Path(reasoning_gym.__file__).parent
    names = {"eval", "exec", "parse_expr", "sympify", "nsimplify", "parse_latex", "lambdify", "import_module"}
    found = set()
    for path in root.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else "" for f in calls}
        if called & names:
            found.add(str(path.relative_to(root)))
    assert found == set(CALLS)


class NewTask:
    """A task of a version that is not here yet: its verifier reaches eval by a function of its own."""

    def score_answer(self, answer, entry):
        return self._same(answer, entry)

    @staticmethod
    def _same(answer, entry):
        return [float(eval(part)) for part in answer.split()] == entry


def test_a_new_task_that_evaluates_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(NewTask, "__module__", "reasoning_gym.new")
    for function in (NewTask.score_answer, NewTask._same):
        monkeypatch.setattr(function, "__module__", "reasoning_gym.new")
    monkeypatch.setitem(DATASETS, "new_task", (NewTask, None))
    with pytest.raises(ValueError, match=r"'reasoning_gym:new_task': its verifier evaluates text: it calls eval\. "):
        gym.verifier("new_task")


def test_a_composite_is_refused():
    with pytest.raises(ValueError, match="use the kind of the entry's task"):
        gym.verifier("composite")


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_read_as_sympy_reads_them(text):
    def read(parser):
        try:
            found = parser(text)
        except Exception as error:
            return type(error)
        return str(found) if isinstance(found, sympy.Basic) else ValueError  # no formula: a list, a text

    assert read(expressions.parse) == read(sympy.parse_expr)


@pytest.mark.parametrize(
    "text", ["x.diff(x)", "[1, 2][0]", "(lambda: 1)()", "exp(Function('f'))", "Symbol('a b')", "S"]
)
def test_what_is_not_a_formula_is_an_error_or_a_symbol(text):
    if text == "S":
        assert expressions.parse(text).is_Symbol
        return
    with pytest.raises(ValueError, match="is not a number, a symbol, arithmetic or a known function"):
        expressions.parse(text)


def test_math_verify_evaluates_no_name_of_an_answer():
    """math-verify calls parse_expr, and so eval, only on texts of digits and operators: its workers serve many items.

    Python reports every text that is compiled, in a process of its own, since the hook cannot be taken away.
    """
    program = r"""
import sys
from entropy_rl.rewards.verify import verifier
judge, compiled = verifier("math"), []
code = "__import__('os').system('true')"
sys.addaudithook(lambda event, args: compiled.append(args[0]) if event == "compile" else None)
forms = ["%s", r"\text{%s}", "$%s$", "1+%s", r"\{%s,2\}", r"\operatorname{%s}(1)", r"\gcd(1,%s)", "x_{%s}", "f(%s)",
         r"\frac{%s}{2}", "'%s'", "answer is %s", "2*3+%s", r"\sqrt{%s}", r"\left(%s,1\right)", "%s=3", "3=%s"]
for form in forms:
    for gold in ("7", r"\{1,2\}", "x+1", form % code):
        try:
            judge(form % code, gold)
        except Exception:
            pass
judge("2*(3+4)", "14")
texts = [text.decode() if isinstance(text, bytes) else text for text in compiled if isinstance(text, (bytes, str))]
print(any("Integer" in text for text in texts), [text for text in texts if "system" in text or "__import__" in text])
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True []"
