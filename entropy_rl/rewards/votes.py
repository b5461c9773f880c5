"""The answers of several responses to one problem: the majority, how many differ, and their entropy.

An answer is what `extract_answer` reads out of a response; answers are the same if their texts are. None (no answer was
found) and an empty answer are left out.
"""

import math
from collections import Counter
from collections.abc import Sequence


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of several that are, the one that the first of these responses gave.

    >>> majority(["8", "7", None, "7", "8"]), majority([None])
    ('8', None)
    """
    votes = Counter(a for a in answers if a)
    return max(votes, key=votes.__getitem__, default=None)  # of equals the first, in the order of the responses


def distinct(answers: Sequence[str | None]) -> int:
    """The number of different answers.

    >>> distinct(["8", "7", None, "7"])
    2
    """
    return len(set(answers) - {None, ""})


def answer_entropy(answers: Sequence[str | None]) -> float:
    """−Σ f·log f over the answers, nats, with f their shares of the responses that have one; NaN if none has.

    Of n responses it is at most log n: with few, it is below the entropy of the policy's answers.

    >>> round(answer_entropy(["8", "7", None, "7", "8"]), 4)
    0.6931
    """
    counts = Counter(a for a in answers if a)
    n = counts.total()
    return math.fsum(c / n * math.log(n / c) for c in counts.values()) if n else math.nan
