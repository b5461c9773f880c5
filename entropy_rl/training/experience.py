"""A step's responses with their rewards, and new groups to replace those that teach nothing.

Shapes: N prompts, G samples per prompt, B = N·G, T response positions. All on the host.
"""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from entropy_rl.data import Problem, PromptEncoder, Source
from entropy_rl.model.transformer import Params
from entropy_rl.rewards import Grader, controls, extract_answer
from entropy_rl.rewards import parts as reward_parts
from entropy_rl.rewards.grader import ENOUGH, Item
from entropy_rl.runtime import distributed, preemption
from entropy_rl.runtime.clock import Clock
from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.sampling.remote import check_gap
from entropy_rl.training.batch import Batch
from entropy_rl.training.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REFILL_KEYS = 1 << 20  # beyond the keys of a step's updates


class Experience(NamedTuple):
    """One rollout, graded.

    Attributes:
        problems: N.
        prompts: N, encoded.
        rollout: B responses.
        old_logp: f32[B, T], nats, under the policy that sampled: the trainer's if it scored the responses, otherwise
            the sampler's.
        texts: B.
        parts: name -> f32[B], the parts of the reward, NaN if not scored.
        reward_B: f32[B], their weighted sum, 0 if not scored.
        valid_B: bool[B], every part that counts was scored.
        answers: B, the answers that were read out of the texts; None if there was none.
    """

    problems: list[Problem]
    prompts: Prompts
    rollout: Rollout
    old_logp: np.ndarray
    texts: list[str]
    parts: dict[str, np.ndarray]
    reward_B: np.ndarray
    valid_B: np.ndarray
    answers: list[str | None]

    @property
    def samples(self) -> int:
        """G, the responses per prompt."""
        return len(self.texts) // len(self.problems)

    def owner(self, b: int) -> Problem:
        """The problem of response b."""
        return self.problems[b // self.samples]


class Collector(NamedTuple):
    """Everything that makes experience from a policy's parameters.

    Attributes:
        engine: samples.
        tokenizer: makes text of the responses.
        rollout: the config section.
        reward: the config section.
        source: gives the problems.
        encoder: makes tokens of them.
        grader: scores the responses.
        clock: counts the time, as "rollout" and "reward".
        seed: the run's, of random rewards.
    """

    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    rollout: ConfigDict
    reward: ConfigDict
    source: Source
    encoder: PromptEncoder
    grader: Grader
    clock: Clock
    seed: int

    def collect(self, params: Params, step: int, key: jax.Array, refill_round: int = 0) -> Experience:
        """G responses to each of `rollout.prompts` problems, and their rewards.

        A pure function of the parameters and (seed, step, refill_round).

        Args:
            params: the policy's parameters.
            step: from 1.
            key: the step's key.
            refill_round: 0 for the step's own rollout; from 1 on, the problems and draws of a refill.
        """
        # no `with`: it would wait for what is still being graded after a stop or an error
        pool = ThreadPoolExecutor(1)
        try:
            with self.clock("rollout"):
                problems = self.source.train(step, self.rollout.prompts, refill_round)
                prompts = Prompts(*self.encoder(problems), distinct_uids(problems))
                key = jax.random.fold_in(key, _REFILL_KEYS + refill_round if refill_round else 0)
                grading = Grading(self.tokenizer, self.reward, self.grader, pool, problems, self.rollout.samples)
                rollout = self.engine.rollout(params, prompts, key, done=grading.start)
                rollout, old_logp = self._scored(params, prompts, rollout)
            with self.clock("reward"):
                scores, answers = grading.finish()
                length_B = rollout.mask.sum(axis=1)
                if self.reward.kind != "answer":
                    entropy_B = (rollout.entropy * rollout.mask).sum(axis=1) / np.maximum(length_B, 1)
                    graded = controls.Graded(
                        grading.texts, answers, scores["answer"], entropy_B, prompts.uid_N, self.seed, step
                    )
                    scores[controls.PART] = controls.control(self.reward, graded)
                parts = reward_parts.with_lengths(self.reward, scores, length_B, self.rollout.max_tokens)
                reward, valid = reward_parts.total(self.reward, parts)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return Experience(problems, prompts, rollout, old_logp, grading.texts, parts, reward, valid, answers)

    def _scored(self, params: Params, prompts: Prompts, rollout: Rollout) -> tuple[Rollout, np.ndarray]:
        """(the rollout with its entropy, f32[B, T] old logp); the trainer scores what another engine sampled."""
        if self.engine.sampler.measures_entropy:
            return rollout, rollout.logp
        # as many groups at a time as an update has, laid out as its groups are
        parts = self.engine.parts(Batch.of(prompts, rollout))
        scored = jax.device_get([self.engine.score(params, part) for part in parts])
        logp, entropy = (np.concatenate(x) for x in zip(*scored, strict=True))
        check_gap(self.rollout.server, logp, rollout.logp, rollout.mask)
        return rollout._replace(entropy=entropy), logp


Judged = tuple[dict[str, np.ndarray], list[str | None]]  # part -> f32[some]; as many answers


class Grading:
    """The grading of a rollout beside its sampling: a response is graded as soon as it has ended.

    Each of the processes grades its share of the responses.

    Attributes:
        texts: the B responses as text, "" until they have ended.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        reward: ConfigDict,
        grader: Grader,
        pool: ThreadPoolExecutor,
        problems: Sequence[Problem],
        samples: int,
    ):
        self._tokenizer, self._reward, self._grader, self._pool = tokenizer, reward, grader, pool
        self._owners = [p for p in problems for _ in range(samples)]
        self._waiting: list[tuple[list[int], Future[Judged]]] = []
        self.texts = [""] * len(self._owners)

    def start(self, rows: list[int], rollout: Rollout) -> None:
        """Decodes responses that have ended and starts to grade this process's share; see `sampling.base.Done`."""
        for b in rows:
            ids = rollout.tokens[b, : rollout.mask[b].sum()]
            self.texts[b] = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        if mine := [b for b in rows if distributed.mine(b)]:
            items = [(self._owners[b].kind, self.texts[b], self._owners[b].entry) for b in mine]
            self._waiting.append((mine, self._pool.submit(judged, self._reward, self._grader, items)))

    def finish(self) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """(part -> f32[B], NaN if not scored; the B answers), once all responses are graded.

        Raises:
            RuntimeError: None of `ENOUGH` responses or more could be scored for some part.
        """

        def mine() -> list[tuple[list[int], dict[str, list[float]], list[str | None]]]:
            done = [(rows, *preemption.wait(waiting)) for rows, waiting in self._waiting]
            return [(rows, {name: x.tolist() for name, x in found.items()}, answers) for rows, found, answers in done]

        scores: dict[str, np.ndarray] = {}
        answers: list[str | None] = [None] * len(self._owners)
        for rows, found, given in itertools.chain(*distributed.outcomes(mine)):
            for b, answer in zip(rows, given, strict=True):
                answers[b] = answer
            for name, some in found.items():
                scores.setdefault(name, np.full(len(self._owners), np.nan, np.float32))[rows] = some
        for part in scores.values():
            if len(part) >= ENOUGH and np.isnan(part).all():
                self._grader.refuse(len(part))
        return scores, answers


def judged(reward: ConfigDict, grader: Grader, items: list[Item]) -> Judged:
    """The verdicts on responses, see `rewards.parts.verdicts`, and the answers that are read out of them."""
    verdicts = reward_parts.verdicts(reward, grader, items, local=True)
    return verdicts, [extract_answer(text) for _, text, _ in items]


def distinct_uids(problems: Sequence[Problem]) -> np.ndarray:
    """u32[N]: the problems' uids; a problem that is in the batch twice draws other responses the second time."""
    seen: dict[int, int] = {}
    uids = []
    for p in problems:
        times = seen[p.uid] = seen.get(p.uid, -1) + 1
        uids.append(zlib.crc32(b"%d %d" % (p.uid, times)) if times else p.uid)
    return np.array(uids, np.uint32)


def degenerate(experience: Experience) -> np.ndarray:
    """bool[N]: the groups whose responses are all right, all wrong, or not scored; by the control, if there is one.

    If answers are no part of the reward, these are the groups with one and the same reward.
    """
    parts = experience.parts
    by = parts.get(controls.PART, parts.get("answer", experience.reward_B))
    values = np.where(experience.valid_B, by, np.nan).reshape(len(experience.problems), -1)
    scored = np.isfinite(values)
    low = np.where(scored, values, np.inf).min(axis=1)
    return ~(np.where(scored, values, -np.inf).max(axis=1) > low)


def refill(first: Experience, again: Callable[[int], Experience], refills: int) -> tuple[Experience, dict[str, Any]]:
    """DAPO's dynamic sampling (arXiv 2503.14476): degenerate groups are replaced by new groups that are not.

    Args:
        first: the step's rollout.
        again: refill round, from 1 -> a rollout of new prompts.
        refills: the largest number of rounds; 0: nothing is replaced.

    Returns:
        (the experience to train on, metrics: rounds used, the share of groups replaced and of groups still
        degenerate, tokens sampled beyond the first rollout).
    """
    experience, seen = first, {p.uid for p in first.problems}
    used, tokens = 0, 0
    replaced = np.zeros(len(first.problems), bool)
    while used < refills and degenerate(experience).any():
        used += 1
        fresh = again(used)
        tokens += int(fresh.rollout.mask.sum())
        empty, places = np.flatnonzero(degenerate(experience)).tolist(), dict[int, int]()
        for i in np.flatnonzero(~degenerate(fresh)).tolist():
            if len(places) < len(empty) and fresh.problems[i].uid not in seen:
                seen.add(fresh.problems[i].uid)
                places[empty[len(places)]] = i
        experience = _put(experience, fresh, places)
        replaced[list(places)] = True
    if not refills:
        return experience, {}
    return experience, {
        "refill/rounds": used,
        "refill/replaced_frac": float(replaced.mean()),
        "refill/degenerate_frac": float(degenerate(experience).mean()),
        "refill/tokens": tokens,
    }


def _put(experience: Experience, fresh: Experience, places: Mapping[int, int]) -> Experience:
    """The experience with some of its groups replaced by groups of another rollout; each array is copied once.

    Args:
        experience: of N groups.
        fresh: the other rollout.
        places: a group's index in `experience` -> the index in `fresh` of the group that replaces it.
    """
    N = len(experience.problems)

    def swap(old: Any, new: Any) -> Any:
        """A list or an array with one entry per prompt, or per response."""
        old = old.copy()
        size = len(old) // N  # 1, or G
        for i, j in places.items():
            old[i * size : (i + 1) * size] = new[j * size : (j + 1) * size]
        return old

    def swap_all(old: Any, new: Any) -> Any:
        """A NamedTuple of arrays."""
        return type(old)(*(swap(a, b) for a, b in zip(old, new, strict=True)))

    if not places:
        return experience
    return Experience(
        problems=swap(experience.problems, fresh.problems),
        prompts=swap_all(experience.prompts, fresh.prompts),
        rollout=swap_all(experience.rollout, fresh.rollout),
        old_logp=swap(experience.old_logp, fresh.old_logp),
        texts=swap(experience.texts, fresh.texts),
        parts={name: swap(part, fresh.parts[name]) for name, part in experience.parts.items()},
        reward_B=swap(experience.reward_B, fresh.reward_B),
        valid_B=swap(experience.valid_B, fresh.valid_B),
        answers=swap(experience.answers, fresh.answers),
    )
