"""A step's responses with their rewards, and fresh groups in the place of those that teach nothing.

Shapes: N prompts, G samples a prompt, B = N·G, T response positions. All on the host.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from entropy_rl.data import Problem, Prompts, Source
from entropy_rl.rewards import Grader
from entropy_rl.rewards import parts as reward_parts
from entropy_rl.runtime import distributed
from entropy_rl.sampling import client as server
from entropy_rl.sampling import slots as sampler
from entropy_rl.training import step as step_lib
from entropy_rl.training.engine import Engine

_REFILL_KEYS = 1 << 20  # beyond the keys of a step's updates


class Experience(NamedTuple):
    """One rollout, graded.

    Attributes:
        problems: N.
        prompt_NxP, prompt_mask_NxP: i32, left padded.
        uid_N: u32, what randomness and ties hang on.
        out: the rollout.
        old_logp: f32[B, T], under the policy that sampled: the trainer's where it was asked, else the sampler's own.
        texts: B.
        parts: name -> f32[B], the parts of the reward, NaN where not scored.
        reward_B: f32[B], their weighted sum, 0 where not scored.
        valid_B: bool[B], every part was scored.
        seconds: (for the rollout, for the rewards that were still missing when it ended).
    """

    problems: list[Problem]
    prompt_NxP: np.ndarray
    prompt_mask_NxP: np.ndarray
    uid_N: np.ndarray
    out: sampler.Rollout
    old_logp: np.ndarray
    texts: list[str]
    parts: dict[str, np.ndarray]
    reward_B: np.ndarray
    valid_B: np.ndarray
    seconds: tuple[float, float]

    def owner(self, b: int) -> Problem:
        """The problem of response b."""
        return self.problems[b // (len(self.texts) // len(self.problems))]


def collect(
    e: Engine, c: ConfigDict, params, source: Source, prompts: Prompts, grader: Grader, step: int, key, round: int = 0
) -> Experience:
    """G responses to each of `rollout.prompts` problems and their rewards: a pure function of (seed, step, round).

    Args:
        e, c, params: the engine, its configuration, the policy.
        source, prompts, grader: give problems, their tokens, and verdicts.
        step: from 1.
        key: the step's.
        round: 0; above that, problems and draws of a refill.
    """
    began = time.monotonic()
    problems = source.train(step, c.rollout.prompts, round)
    prompt, mask = prompts(problems)
    uid = distinct_uids(problems)
    key = jax.random.fold_in(key, _REFILL_KEYS + round if round else 0)
    owners = [p for p in problems for _ in range(c.rollout.samples)]
    with ThreadPoolExecutor(1) as pool:
        texts, waiting = [""] * len(owners), []

        def grade(rows: list[int], out: sampler.Rollout) -> None:
            """Responses that have ended are graded while the others go on, each by one of the processes."""
            for b in rows:
                texts[b] = e.tokenizer.decode(out.tokens[b, : out.mask[b].sum()], skip_special_tokens=True)
            if mine := [b for b in rows if distributed.mine(b)]:
                items = [(owners[b].kind, texts[b], owners[b].entry) for b in mine]
                waiting.append((mine, pool.submit(reward_parts.verdicts, c.reward, grader, items, local=True)))

        out = e.rollout(params, prompt, mask, uid, key, done=grade)
        old_logp = out.logp
        if c.rollout.server:
            old_logp, entropy = scored(e, c, params, prompt, mask, out)
            server.check_gap(c.rollout.server, old_logp, out.logp, out.mask)
            out = out._replace(entropy=entropy)
        sampled = time.monotonic()
        scores: dict[str, np.ndarray] = {}
        plain = lambda found: {name: x.tolist() for name, x in found.items()}
        graded = distributed.outcomes(lambda: [(rows, plain(future.result())) for rows, future in waiting])
        for rows, found in itertools.chain(*graded):
            for name, some in found.items():
                scores.setdefault(name, np.full(len(owners), np.nan, np.float32))[rows] = some
    for part in scores.values():
        if np.isnan(part).all():
            grader.refuse(len(part))
    parts = reward_parts.with_lengths(c.reward, scores, out.mask.sum(axis=1), c.rollout.max_tokens)
    reward, valid = reward_parts.total(c.reward, parts)
    seconds = sampled - began, time.monotonic() - sampled
    return Experience(problems, prompt, mask, uid, out, old_logp, texts, parts, reward, valid, seconds)


def scored(e: Engine, c: ConfigDict, params, prompt_NxP, prompt_mask_NxP, out: sampler.Rollout) -> list[np.ndarray]:
    """[logp, entropy], f32[B, T] each: what the trainer says of responses that were made elsewhere.

    As many groups at a time as an update has, laid out as its are.
    """
    none = np.zeros_like(out.logp)
    every, uid = np.ones(len(none), bool), np.zeros(len(none), np.uint32)
    batch = step_lib.Batch(prompt_NxP, prompt_mask_NxP, out.tokens, out.mask, every, none, none, none, none, none, uid)
    parts = [step_lib.lay_out(e.plan, part) for part in step_lib.cut(batch, c.train.updates_per_rollout)]
    return [np.concatenate(x) for x in zip(*jax.device_get([e.score(params, part) for part in parts]))]


def distinct_uids(problems: Sequence[Problem]) -> np.ndarray:
    """u32[N]: the problems' own; where one stands in a batch twice, the second draws responses of its own."""
    seen: dict[int, int] = {}
    uids = []
    for p in problems:
        times = seen[p.uid] = seen.get(p.uid, -1) + 1
        uids.append(zlib.crc32(b"%d %d" % (p.uid, times)) if times else p.uid)
    return np.array(uids, np.uint32)


def degenerate(x: Experience) -> np.ndarray:
    """bool[N]: groups all right or all wrong (where answers are no part of the reward: of one reward), or unscored."""
    values = np.where(x.valid_B, x.parts.get("answer", x.reward_B), np.nan).reshape(len(x.problems), -1)
    scored = np.isfinite(values)
    low = np.where(scored, values, np.inf).min(axis=1)
    return ~(np.where(scored, values, -np.inf).max(axis=1) > low)


def refill(first: Experience, again: Callable[[int], Experience], rounds: int) -> tuple[Experience, dict[str, Any]]:
    """DAPO's dynamic sampling: degenerate groups are replaced by groups of fresh prompts that are not.

    Args:
        first: the step's rollout.
        again: round, from 1 -> a rollout of fresh prompts.
        rounds: how many of these at most; 0: nothing is replaced.

    Returns:
        (the experience to train on, metrics: rounds taken, the share of groups replaced and of those still degenerate,
        tokens sampled beyond the first rollout).
    """
    x, seen = first, {p.uid for p in first.problems}
    used, tokens, seconds = 0, 0, first.seconds
    replaced = np.zeros(len(first.problems), bool)
    while used < rounds and degenerate(x).any():
        used += 1
        fresh = again(used)
        tokens += int(fresh.out.mask.sum())
        seconds = seconds[0] + fresh.seconds[0], seconds[1] + fresh.seconds[1]
        empty = np.flatnonzero(degenerate(x)).tolist()
        for i in np.flatnonzero(~degenerate(fresh)).tolist():
            if empty and fresh.problems[i].uid not in seen:
                seen.add(fresh.problems[i].uid)
                x = _put(x, empty[0], fresh, i)
                replaced[empty.pop(0)] = True
    if not rounds:
        return x, {}
    return x._replace(seconds=seconds), {
        "refill/rounds": used,
        "refill/replaced_frac": float(replaced.mean()),
        "refill/degenerate_frac": float(degenerate(x).mean()),
        "refill/tokens": tokens,
    }


def _put(x: Experience, i: int, fresh: Experience, j: int) -> Experience:
    """x with its group i replaced by group j of another rollout."""
    N = len(x.problems)

    def swap(old, new):
        old = old.copy()
        size = len(old) // N  # 1 for what a prompt has, G for what a response has
        old[i * size : (i + 1) * size] = new[j * size : (j + 1) * size]
        return old

    return x._replace(
        problems=swap(x.problems, fresh.problems),
        prompt_NxP=swap(x.prompt_NxP, fresh.prompt_NxP),
        prompt_mask_NxP=swap(x.prompt_mask_NxP, fresh.prompt_mask_NxP),
        uid_N=swap(x.uid_N, fresh.uid_N),
        old_logp=swap(x.old_logp, fresh.old_logp),
        out=sampler.Rollout(*(swap(np.asarray(a), np.asarray(b)) for a, b in zip(x.out, fresh.out, strict=True))),
        texts=swap(x.texts, fresh.texts),
        parts={name: swap(part, fresh.parts[name]) for name, part in x.parts.items()},
        reward_B=swap(x.reward_B, fresh.reward_B),
        valid_B=swap(x.valid_B, fresh.valid_B),
    )


def reward_row(x: Experience) -> dict[str, Any]:
    """reward/mean, reward/std and a mean for every part, over the responses that were scored; null where none was."""
    mean = lambda v: float(v.mean()) if len(v) else None
    scored = x.reward_B[x.valid_B]
    return {
        "reward/mean": mean(scored),
        "reward/std": float(scored.std()) if len(scored) else None,
        "reward/unscored": int((~x.valid_B).sum()),
        **{f"reward/{name}": mean(part[np.isfinite(part)]) for name, part in x.parts.items()},
    }
