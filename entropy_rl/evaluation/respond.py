"""Responses to fixed problems, with their verdicts.

N prompts at a time, n samples per prompt. All batches have one shape: the last one is filled up, and its surplus is
dropped.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from entropy_rl.data import Problem, PromptEncoder
from entropy_rl.model.transformer import Params
from entropy_rl.rewards import Grader, extract_answer
from entropy_rl.rewards.grader import ENOUGH, Item
from entropy_rl.runtime import distributed, preemption
from entropy_rl.sampling.base import Decoding, Prompts, Response, Sampler, responses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GREEDY_SAMPLE = -1  # the number of a greedy response


class Answered(NamedTuple):
    """One response.

    Attributes:
        problem: the problem.
        sample: its number, from 0; −1: the greedy one.
        text: the response.
        answer: the answer that was read out of it, or None.
        score: the verifier's, None if it could not tell.
        length: tokens.
        finished: it was not cut.
        entropy: nats per token; NaN if the sampler does not measure it.
    """

    problem: Problem
    sample: int
    text: str
    answer: str | None
    score: float | None
    length: int
    finished: bool
    entropy: float

    @property
    def right(self) -> bool:
        """The verifier gave its full point."""
        return self.score is not None and self.score >= 1.0


def respond(
    sampler: Sampler,
    params: Params,
    problems: Sequence[Problem],
    encoder: PromptEncoder,
    tokenizer: "PreTrainedTokenizerBase",
    grader: Grader,
    *,
    n: int,
    decoding: Decoding,
    batch: int,
    key: jax.Array,
    first: int,
    keep: Sequence[Callable[[Sequence[Answered], Sequence[Response]], None]] = (),
) -> list[list[Answered]]:
    """For each problem its n graded responses, numbered from `first`.

    Args:
        sampler: makes the responses.
        params: the policy's parameters; empty: a server has them.
        problems: any number.
        encoder: makes tokens of the problems.
        tokenizer: makes text of the responses.
        grader: scores them.
        n: responses per problem.
        decoding: how tokens are drawn and what ends a response.
        batch: N, the shape that is compiled.
        key: of the draws, which depend on (key, problem).
        first: the number of each problem's first response.
        keep: called with every batch's responses, with all their tokens.

    Raises:
        RuntimeError: If `ENOUGH` responses or more are graded and none of them can be scored. A few that cannot be,
            even all of one batch, are reported as such: a single answer that never ends must not end a run.
    """

    def grade(items: list[Item]) -> list[float | None]:
        return grader.grade(items, local=True)

    found: list[list[Answered]] = []
    graded, scored = 0, 0
    for i in range(0, len(problems), batch):
        preemption.look()
        some = list(problems[i : i + batch])
        surplus = batch - len(some)
        uid = np.array([p.uid for p in some] + [0] * surplus, np.uint32)
        prompts = Prompts(*encoder(some + some[:1] * surplus), uid)
        rollout = jax.device_get(sampler.sample(params, prompts, key, n=n, decoding=decoding))
        made = responses(rollout, tokenizer)[: len(some) * n]
        owners = [p for p in some for _ in range(n)]
        scores = distributed.share([(p.kind, r.text, p.entry) for p, r in zip(owners, made, strict=True)], grade)
        graded, scored = graded + len(scores), scored + sum(score is not None for score in scores)
        if graded >= ENOUGH and not scored:
            grader.refuse(graded)
        rows = [
            _answered(p, first + b % n, r, score)
            for b, (p, r, score) in enumerate(zip(owners, made, scores, strict=True))
        ]
        for one in keep:
            one(rows, made)
        found += [rows[j * n : (j + 1) * n] for j in range(len(some))]
    return found


def _answered(problem: Problem, sample: int, r: Response, score: float | None) -> Answered:
    entropy = float(np.mean(r.entropy)) if len(r.entropy) else 0.0
    return Answered(problem, sample, r.text, extract_answer(r.text), score, len(r.tokens), r.finished, entropy)
