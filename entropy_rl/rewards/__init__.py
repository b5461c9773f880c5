"""Rewards: one place that reads the answer, one that judges it, and processes that may be killed to do so in.

`score` runs here and now, for a notebook. Training uses `Grader`: verifiers evaluate what a model wrote.
"""

from entropy_rl.rewards.answer import extract_answer, extract_boxed
from entropy_rl.rewards.grader import Grader
from entropy_rl.rewards.verify import score

__all__ = ["Grader", "extract_answer", "extract_boxed", "score"]
