r"""The meaning of mathematical answers: rows of inputs with their verdicts, and properties of random ones.

`cases.json` is what went wrong for people elsewhere, with its sources; `meanings.tsv` is more of the same kinds.
"""

import json
import pathlib
import random
import time

import pytest

from entropy_rl.rewards.normalise import normalise
from entropy_rl.rewards.verify import judge_response, verifier

HERE = pathlib.Path(__file__).parent


def graded(kind, response, gold):
    return judge_response(verifier(kind), kind, response, gold)


def math(given, gold):
    return graded("math", f"So the answer is \\boxed{{{given}}}.", gold)


def cases():
    for case in json.loads((HERE / "cases.json").read_text()):
        for row in case["rows"]:
            name = f"{row['response']} for {row['gold']}"
            yield pytest.param(case["kind"], row["response"], row["gold"], row["expected"], id=name)


@pytest.mark.parametrize("kind, response, gold, expected", list(cases()))
def test_cases_from_elsewhere(kind, response, gold, expected):
    assert graded(kind, response, gold) == expected


def meanings():
    for line in (HERE / "meanings.tsv").read_text().splitlines():
        if not line.startswith("#"):
            gold, given, verdict = line.split("\t")
            yield pytest.param(gold, given, float(verdict), id=f"{given} for {gold}")


@pytest.mark.parametrize("gold, given, verdict", list(meanings()))
def test_more_of_the_same_kinds(gold, given, verdict):
    assert math(given, gold) == verdict


def numbers(count):
    """Numbers of many sizes and forms, as (LaTeX, LaTeX of the number times 1 + 1e-4)."""
    draw = random.Random(0)
    for _ in range(count):
        digits, power = draw.randint(10**6, 10**7 - 1), draw.randint(-30, 30)
        scaled = digits * 10001
        yield rf"{digits / 10**6} \times 10^{{{power}}}", rf"{scaled / 10**10:.10f} \times 10^{{{power}}}"
        yield f"{digits}", f"{digits * 1.0001}"
        yield f"{digits}e{power}", f"{scaled}e{power - 4}"
        yield rf"\frac{{{digits}}}{{7919}}", rf"\frac{{{scaled}}}{{79190000}}"
        yield rf"\frac{{\sqrt{{3}}}}{{{digits}}}", rf"\frac{{10001\sqrt{{3}}}}{{{10000 * digits}}}"
        yield f"-{digits / 10**9}", f"-{scaled / 10**13:.13f}"


@pytest.mark.parametrize("number, scaled", list(numbers(8)))
def test_a_number_scaled_by_a_ten_thousandth_is_wrong(number, scaled):
    assert math(number, number) == 1
    assert math(scaled, number) == 0 and math(number, scaled) == 0


def lists(count):
    draw = random.Random(1)
    forms = ["{}", r"\frac{{{}}}{{7}}", r"\sqrt{{{}}}", "{}.5", r"{}\pi", "{}x", "-{}e-9"]
    for _ in range(count):
        size = draw.randint(2, 5)
        elements = [draw.choice(forms).format(n) for n in draw.sample(range(2, 40), size)]
        other = elements[1:] + elements[:1]  # a rotation of different elements: another order
        yield elements, other


@pytest.mark.parametrize("elements, other", list(lists(25)))
def test_order_counts_in_a_tuple_and_not_in_a_set(elements, other):
    ours, theirs = ", ".join(elements), ", ".join(other)
    assert math(rf"\{{{theirs}\}}", rf"\{{{ours}\}}") == 1
    assert math(theirs, rf"\{{{ours}\}}") == 1
    assert math(f"({theirs})", f"({ours})") == 0
    assert math(f"({ours})", f"({ours})") == 1
    assert math(rf"\{{{theirs}\}}", f"({ours})") == 0 and math(rf"\{{{ours}\}}", f"({ours})") == 0
    assert math(f"({ours})", rf"\{{{ours}\}}") == 0


EXPRESSIONS = ["5", r"\frac{1}{2}", "x=5", "2x+1", r"\sqrt{3}", "0.25", r"\frac{x}{y}", "x^2", "e^{x}", r"2\pi"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("symbol", ["t", "m", "h", "g", "s", "c", "n", r"\theta", "k_1"])
def test_an_added_variable_is_wrong(expression, symbol):
    for given in (f"{expression} {symbol}", f"{expression}+{symbol}"):
        assert math(given, expression) == 0 and math(expression, given) == 0


@pytest.mark.parametrize("number", ["5", "1,234", "0.25", r"\frac{1}{2}", "-3", "12 345", "2 1/3", "4.5e33", "½", "３"])
def test_signs_that_change_nothing_are_right(number):
    currencies = [form.format(number) for form in (r"\${}", "€{}", "{}€", r"{}\$", "£{}")]
    degrees = [f"{number}{sign}" for sign in ("°", r"^\circ", r"^{\circ}", r"\degree", r"^\text{o}")]
    marks = [f"{number}{mark}" for mark in (".", ",", ";", " .", r"\ ", "~", ".~")]
    wrapped = [
        form.format(number) for form in (r"\text{{{}}}", r"\mathbf{{{}}}", "${}$", "**{}**", r"\color{{red}}{{{}}}")
    ]
    for given in currencies + degrees + marks + wrapped:
        assert (given, math(given, number), math(number, given)) == (given, 1, 1)


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "$$",
        "?",
        "...",
        r"\text{}",
        "1/0",
        r"\frac{1}{0}",
        r"\begin{pmatrix}1\\2",
        r"\frac{1}{",
        "10^{10^{10}}",
        "(10^9)!",
    ],
)
def test_a_right_answer_that_cannot_be_read_or_computed_raises(gold):
    with pytest.raises(ValueError, match=r"the right answer .* cannot be (read|computed)"):
        math("5", gold)


@pytest.mark.parametrize(
    "given",
    [
        *(left * n + "5" + right * n for n in (40, 2000) for left, right in [("(", ")"), ("[", "]"), (r"\{", r"\}")]),
        *("x^" * n + "x" for n in (30, 300)),
        "x^{" * 30 + "x" + "}" * 30,
        r"\sqrt{" * 300 + "5" + "}" * 300,
    ],
)
def test_an_answer_that_is_nested_too_deeply_is_not_parsed(given):
    start = time.process_time()  # the grammar takes minutes for 20 brackets
    assert math(given, "5") == 0
    assert time.process_time() - start < 5
    with pytest.raises(ValueError, match="its brackets are nested too deeply"):
        math("5", given)


@pytest.mark.parametrize(
    "given",
    [
        "10^{10^{10}}",
        "9**9**9**9",
        "(10^9)!",
        "e^{10^{9}}",
        "2^{-10^{10}}",
        "(1, 9^{9^9})",
        r"\binom{10^9}{10^8}",
        r"\prod_{k=1}^{10^8} k",
    ],
)
def test_a_given_answer_that_is_too_large_to_compute_is_wrong(given):
    assert math(given, "5") == math(given, r"\{1, 2\}") == 0


@pytest.mark.parametrize("left, right", [(r"\text{", "}"), ("answer: ", ""), ("{", "}")])
def test_some_layers_of_markup_are_taken_off_and_not_thousands(left, right):
    assert math(left * 3 + "5" + right * 3, "5") == 1
    assert len(normalise(left * 2000 + "5" + right * 2000).text) > 2000
