"""Rewards: an answer is read out of a response and judged, in processes that can be killed.

`score` and `score_all` are for notebooks and scripts, `Grader` is what training uses, and `gold_problems` finds the
right answers that nothing can be graded with.
"""

from entropy_rl.rewards.answer import extract_answer, extract_boxed
from entropy_rl.rewards.golds import gold_problem, gold_problems
from entropy_rl.rewards.grader import Grader
from entropy_rl.rewards.nursery import GradersBroken
from entropy_rl.rewards.scoring import score, score_all

__all__ = [
    "Grader",
    "GradersBroken",
    "extract_answer",
    "extract_boxed",
    "gold_problem",
    "gold_problems",
    "score",
    "score_all",
]
