"""Small graded rollouts whose arrays show which problem each row belongs to, for several tests.

Shapes: N prompts, G samples per prompt, B = N·G responses, T response positions.
"""

import numpy as np

from entropy_rl.data import Problem
from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.training.experience import Experience

G, T = 4, 8
RIGHT, WRONG, MIXED, UNSCORED = [1.0] * G, [0.0] * G, [1.0, 0.0, 0.0, None], [None] * G


def graded(groups, first_uid=0, tokens=3) -> Experience:
    """N groups with these scores (None: not scored), of problems from `first_uid` on.

    Row g of problem u begins with token 10·u, logp −10·u and entropy 20·u; its text is "u g", its answer its score.
    """
    N, B = len(groups), len(groups) * G
    uid = np.arange(first_uid, first_uid + N, dtype=np.uint32)
    score = np.array([np.nan if s is None else s for group in groups for s in group], np.float32)
    rows = np.repeat(uid, G)[:, None] * 10 + np.arange(T)
    mask = np.broadcast_to(np.arange(T) < tokens, (B, T)).astype(np.int32)
    rollout = Rollout(rows.astype(np.int32) * mask, -rows * 1.0, rows * 2.0, mask, np.ones(B, bool))
    valid = np.isfinite(score)
    return Experience(
        [Problem(int(u), f"question {u}", "1", "math") for u in uid],
        Prompts(np.broadcast_to(uid[:, None], (N, 2)).astype(np.int32), np.ones((N, 2), np.int32), uid),
        rollout,
        rollout.logp,
        [f"{u} {g}" for u in uid for g in range(G)],
        {"answer": score},
        np.where(valid, score, 0.0).astype(np.float32),
        valid,
        [None if s is None else str(s) for group in groups for s in group],
    )


def with_length_penalty(experience: Experience) -> Experience:
    """The same with a second part of the reward, 0, −0.1, −0.2, … within each group."""
    N = len(experience.problems)
    spread = np.tile(-0.1 * np.arange(G, dtype=np.float32), N)
    parts = experience.parts | {"length": spread}
    return experience._replace(parts=parts, reward_B=experience.reward_B + spread)
