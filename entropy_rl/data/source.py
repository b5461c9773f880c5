"""A problem, the hashes that identify its question, and the protocol of everything that problems come from."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

MAX_REFILLS = 15  # refill rounds per step: each source reserves that many draws for every step


class Problem(NamedTuple):
    """One question, with the data that its verifier needs.

    Attributes:
        uid: u32 hash of the question's text.
        question: the text that the prompt asks.
        entry: the right answer, or the data set's entry: the `answer` argument of `rewards.score`.
        kind: the `kind` argument of `rewards.score`, such as "reasoning_gym:<task>".
        difficulty: the group that accuracy is reported by; "" if the source has no such field.
        solution: a worked solution that the source provides, or "".
        answer: the right answer as text, to print and to end a worked solution with.
    """

    uid: int
    question: str
    entry: Any
    kind: str
    difficulty: str = ""
    solution: str = ""
    answer: str = ""


Fault = Callable[[Problem], str | None]  # the reason why a problem cannot be used, or None


def first_fault(*faults: Fault) -> Fault:
    """problem -> what the first of these functions that finds something finds; None if none does."""
    return lambda problem: next((why for fault in faults if (why := fault(problem)) is not None), None)


class Source(Protocol):
    """Where problems come from: a reasoning-gym `Task`, a `Stored` file or data set, or a `Mixture` of them.

    A question is either held out or used for training, and it is the same in every run.
    """

    @property
    def name(self) -> str:
        """A short name, for logs and metric keys."""

    @property
    def digest(self) -> str:
        """Identifies the data: sources with different digests may give different problems."""

    @property
    def parts(self) -> Mapping[str, "Source"]:
        """Name -> source: the parts of a mixture; for any other source, itself alone."""

    @property
    def kind(self) -> str:
        """The verifier of its problems, a `kind` of `rewards.score`; "" for a mixture."""

    @property
    def stored(self) -> list[Problem]:
        """The problems that it holds, each of which can be looked at; [] for a task, which makes its own."""

    def train(self, step: int, n: int, refill_round: int = 0, start: int | None = None) -> list[Problem]:
        """n training problems, a pure function of (seed, step, refill_round).

        Args:
            step: from 1.
            n: number of problems.
            refill_round: 0, or from 1 to `MAX_REFILLS`: fresh problems for the same step, to replace groups that teach
                nothing.
            start: for a source with an order, the place in the order of round 0 at which this step begins; None means
                (step − 1)·n. Other sources and rounds ignore it.

        Raises:
            ValueError: If step is below 1, or there are fewer than n different problems.
        """

    def held_out(self, n: int) -> list[Problem]:
        """The first n held-out problems, in an order that does not depend on the seed."""

    def kept_out(self, n: int) -> list[Problem]:
        """The problems that training must not contain if `held_out(n)` is evaluated: at least those n."""

    def withhold(self, questions: frozenset[int]) -> int:
        """Removes these questions (`question_key`) from training; returns the number of stored ones removed."""

    def fit(self, fault: Fault, bad_rows: str) -> None:
        """Rejects the problems in which `fault` finds something wrong.

        Args:
            fault: returns the reason why a problem cannot be used, or None.
            bad_rows: "error" or "skip" (`data.bad_rows`).
        """


def check_step(step: int) -> None:
    """Raises ValueError for a step below 1."""
    if step < 1:
        raise ValueError(f"step is {step}; steps count from 1")


def question_key(question: str) -> int:
    """A 64-bit hash of the question's words, which identifies an evaluation problem among training problems.

    Case and white space make no difference.
    """
    return hash_text(" ".join(question.split()).casefold(), 8)


def hash_text(text: str, n_bytes: int) -> int:
    """An unsigned number of n_bytes bytes, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=n_bytes).digest()
    return int.from_bytes(digest, "big")
