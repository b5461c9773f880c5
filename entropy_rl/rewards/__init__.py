"""Rewards: one module reads the answer, one judges it, and processes that can be killed do both during training.

`score` runs in the calling process, which suits a notebook. Training uses `Grader`, because some verifiers evaluate
the text that a model wrote.
"""

from entropy_rl.rewards.answer import extract_answer, extract_boxed
from entropy_rl.rewards.grader import Grader
from entropy_rl.rewards.verify import score

__all__ = ["Grader", "extract_answer", "extract_boxed", "score"]
