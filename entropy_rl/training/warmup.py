"""The supervised warm-up on worked solutions, by the same train step: groups of one, and the loss −log π."""

import json
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from entropy_rl import token_transforms
from entropy_rl.data import Problem, PromptEncoder, Source, worked_solution
from entropy_rl.model.transformer import ModelConfig, Params
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.record.keeper import Keeper
from entropy_rl.runtime import preemption
from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.engine import Engine
from entropy_rl.training.update import Method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST = 1 << 20  # the warm-up's problems come from steps that RL does not reach


def negative_logp(logp_BxT: jax.Array, tokens: TokenInfo) -> tuple[jax.Array, jax.Array]:
    """The supervised objective: (−logp, nothing clipped)."""
    return -logp_BxT, jnp.zeros(logp_BxT.shape, bool)


class Lessons:
    """Worked solutions as batches, a pure function of (seed, update).

    Args:
        warmup: the config section.
        seed: the run's.
        max_tokens: T, the room for a solution.
        source: gives the problems.
        encoder: makes tokens of them, and of the solutions.
    """

    def __init__(
        self,
        warmup: ConfigDict,
        seed: int,
        max_tokens: int,
        source: Source,
        encoder: PromptEncoder,
    ):
        self._warmup, self._seed, self._max_tokens = warmup, seed, max_tokens
        self._source, self._encoder = source, encoder

    def batch(self, i: int) -> Batch:
        """Update i's batch: `warmup.batch` problems, each with a worked solution and the end of sequence."""
        problems = self._source.train(_FIRST + i, self._warmup.batch)
        uid = np.array([p.uid for p in problems], np.uint32)
        made = Rollout.empty(len(problems), self._max_tokens)
        for row, problem in enumerate(problems):
            ids = self.solution(problem, i)
            made.tokens[row, : len(ids)], made.mask[row, : len(ids)] = ids, 1
        return Batch.of(Prompts(*self._encoder(problems), uid), made, uid=uid)

    def key(self, i: int) -> jax.Array:
        """Update i's key, which only the rounding of bfloat16 parameters draws from."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), 2), i)

    def solution(self, problem: Problem, i: int) -> list[int]:
        """The tokens of a worked solution and the end of sequence.

        Raises:
            ValueError: The problem has no worked solution, or one that is too long.
        """
        rng = random.Random(f"{self._seed} {i} {problem.uid}")
        text = worked_solution(problem, rng, self._warmup.error_rate, self._warmup.misread_rate)
        ids = self._encoder.solution(text)
        if len(ids) > self._max_tokens:
            raise ValueError(
                f"rollout.max_tokens={self._max_tokens} is less than the {len(ids)} tokens of a worked solution: "
                f"{text!r}"
            )
        return ids

    def fault(self, problem: Problem) -> str | None:
        """What keeps a problem out of the warm-up, or None."""
        try:
            self.solution(problem, 0)
        except ValueError as error:
            return str(error)
        return self._encoder.fault(problem)


def config_of(c: ConfigDict) -> ConfigDict:
    """The configuration as an update of the warm-up reads it: one update per batch, one response per prompt."""
    own = c.copy_and_resolve_references()
    with own.unlocked():
        own.rollout.prompts, own.rollout.samples, own.train.updates_per_rollout = c.warmup.batch, 1, 1
        own.train.micro_batches, own.train.layout = c.warmup.micro_batches, c.warmup.layout
    return own


def engine_of(
    c: ConfigDict, model_config: ModelConfig, tokenizer: "PreTrainedTokenizerBase | None", mesh: Mesh
) -> Engine:
    """The engine of the warm-up, with AdamW on a falling rate.

    Args:
        c: the run's configuration.
        model_config: the decoder's shape.
        tokenizer: the model's; None if nothing is sampled.
        mesh: the run's.
    """
    lr = optax.cosine_decay_schedule(c.warmup.lr, c.warmup.updates, alpha=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, b2=0.95, weight_decay=0.0))
    method = Method(negative_logp, token_transforms.build([]))
    return Engine(config_of(c), model_config, tokenizer, mesh, method, optimizer, samples=1)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters after the warm-up depend on, by key: the part of a configuration in nested dicts."""
    found = {section: config[section] for section in ("seed", "model", "data", "warmup", "mesh")}
    found["rollout.max_tokens"] = config["rollout"]["max_tokens"]
    found |= {f"eval.{key}": config["eval"][key] for key in ("sets", "problems")}  # which are kept out of training
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as in config.json
    return plain


class Progress(NamedTuple):
    """A warm-up between two updates.

    Attributes:
        state: the warm-up's own.
        done: the updates made.
        losses: nats per token, of the newest updates, as many as `run` reports the mean of.
    """

    state: TrainState
    done: int
    losses: list[float]


def run(
    warmup: ConfigDict, max_skipped: int, engine: Engine, start: Progress, lessons: Lessons, keeper: Keeper, every: int
) -> tuple[Params, float]:
    """Makes `warmup.updates` updates: (the parameters, the mean loss in nats per token of the last tenth of them).

    A pure function of the configuration and the first parameters, resumed or not.

    Args:
        warmup: the config section.
        max_skipped: `optim.max_skipped`.
        engine: see `engine_of`.
        start: where it starts; its state is donated.
        lessons: the batches.
        keeper: saves between updates, also if the run is stopped.
        every: updates from one save to the next.

    Raises:
        RuntimeError: Too many gradients in a row were not finite.
        Stopped: The run was asked to stop; what was done is saved.
    """
    state, losses, started = start.state, list(start.losses), time.monotonic()
    reported = max(1, warmup.updates // 10)
    with engine.on_mesh(), keeper.kept():
        for i in range(start.done, warmup.updates):
            preemption.STOP.now(f"the warm-up, after {i} of {warmup.updates} updates")
            preemption.look()
            (batch,) = engine.parts(lessons.batch(i))
            keeper.spent()
            # several pieces take their statistics from a forward pass, which an on-policy update would leave out
            one_piece = batch.packed is None and engine.micro_batches == 1
            state, metrics = engine.update(state, batch, lessons.key(i), on_policy=one_piece)
            losses = [*losses, float(metrics["loss"])][-reported:]  # waits for the update
            if int(state.skipped) > max_skipped:
                raise RuntimeError(
                    f"warm-up update {i}: the gradient was not finite in {int(state.skipped)} updates in a row "
                    f"(optim.max_skipped={max_skipped}); lower warmup.lr={warmup.lr}"
                )
            keeper.reached(i + 1, state, losses=losses)
            if (i + 1) % every == 0 and i + 1 < warmup.updates:
                keeper.save()
            if (i + 1) % reported == 0:
                left = (time.monotonic() - started) / (i + 1 - start.done) * (warmup.updates - i - 1)
                logging.info("warm-up %d/%d  loss %.3f  %.0fs left", i + 1, warmup.updates, losses[-1], left)
    return state.params, float(np.mean(losses))
