"""Five problems, and responses without a model, for the tests of evaluation."""

from entropy_rl.data import Problem
from entropy_rl.evaluation.respond import Answered

TEXTS = ["the cat", "mat and hat", "sat on", "the", "hat"]
PROBLEMS = [Problem(i, text, "yes", "exact", f"size={len(text)}", "", "yes") for i, text in enumerate(TEXTS)]


def answered(
    right, uid=0, sample=0, answer="1", length=3, finished=True, entropy=0.5, difficulty="", text="text"
) -> Answered:
    """One response with the score `right`; None: it could not be scored."""
    problem = Problem(uid, f"q{uid}", "1", "exact", difficulty)
    return Answered(problem, sample, text, answer, right, length, finished, entropy)
