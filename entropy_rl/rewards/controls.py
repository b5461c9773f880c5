"""What may take the verdict's place as the reward (`reward.kind`): does the gain come from the reward?

Shapes: N prompts, G samples per prompt, B = N·G responses, prompt by prompt. All on the host.

Most kinds are those of *Spurious Rewards* (arXiv 2506.10947; its abstract and summaries of it were read, its code was
not). Two differ from the paper's. Its majority is taken once, of 64 responses of the initial policy; here it is that
of the group itself. Its incorrect reward is for one wrong answer, the majority's, on the problems where that is wrong;
here it is for any wrong answer. "confidence" is RENT's reward (arXiv 2505.22660).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from entropy_rl.rewards.answer import extract_boxed
from entropy_rl.rewards.votes import majority

CONTROLS = ("format", "random", "incorrect", "majority", "confidence", "none")
PART = "control"  # the name of their values among the parts of the reward


class Graded(NamedTuple):
    """The responses of one rollout, whose answers the verifiers have judged.

    Attributes:
        texts: B.
        answers: B, what `extract_answer` found in them.
        verdict_B: f32[B], the verifiers' points, NaN if not scored.
        entropy_B: f32[B], the mean over each response's tokens, nats.
        uid_N: u32[N], the prompts'.
        seed: the run's.
        step: the run's.
    """

    texts: Sequence[str]
    answers: Sequence[str | None]
    verdict_B: np.ndarray
    entropy_B: np.ndarray
    uid_N: np.ndarray
    seed: int
    step: int

    @property
    def samples(self) -> int:
        """G."""
        return len(self.texts) // len(self.uid_N)


def control(reward: ConfigDict, graded: Graded) -> np.ndarray:
    """The value that counts in place of the verdict.

    Args:
        reward: the config section; its `kind` is one of `CONTROLS`.
        graded: the responses.

    Returns:
        f32[B]: 1 or 0; of "confidence" minus the entropy; of "incorrect" NaN if there is no verdict to go by.
    """
    return np.asarray(_OF[reward.kind](reward, graded), np.float32)


def _format(reward: ConfigDict, graded: Graded) -> list[float]:
    return [1.0 if extract_boxed(text) else 0.0 for text in graded.texts]


def _random(reward: ConfigDict, graded: Graded) -> list[float]:
    """1 with probability `random_p`, for each response on its own: a pure function of (seed, step, prompt, sample).

    A cryptographic hash makes the draws, since those of a CRC would be the same within every group up to a sign.
    """

    def draw(uid: int, sample: int) -> float:
        digest = hashlib.sha256(b"%d %d %d %d" % (graded.seed, graded.step, uid, sample)).digest()
        return int.from_bytes(digest[:6]) / 2**48

    return [float(draw(int(uid), g) < reward.random_p) for uid in graded.uid_N for g in range(graded.samples)]


def _incorrect(reward: ConfigDict, graded: Graded) -> np.ndarray:
    """1 for a wrong answer; 0 for a right one, and for none: or else to say nothing would pay."""
    some = np.array([bool(answer) for answer in graded.answers])
    return np.where(np.isnan(graded.verdict_B), np.nan, some & (graded.verdict_B < 1))


def _majority(reward: ConfigDict, graded: Graded) -> list[float]:
    """1 for the answer that most responses of the group gave, see `votes.majority`."""
    values = []
    for i in range(0, len(graded.answers), graded.samples):
        group = graded.answers[i : i + graded.samples]
        winner = majority(group)
        values += [float(winner is not None and answer == winner) for answer in group]
    return values


def _confidence(reward: ConfigDict, graded: Graded) -> np.ndarray:
    return -graded.entropy_B


def _none(reward: ConfigDict, graded: Graded) -> np.ndarray:
    return np.zeros(len(graded.texts))


_OF = dict(zip(CONTROLS, (_format, _random, _incorrect, _majority, _confidence, _none), strict=True))
