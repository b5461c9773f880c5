"""The supervised warm-up on worked solutions, on the same step machinery: a group of one, and loss −log π."""

import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from entropy_rl import token_transforms
from entropy_rl.data import Problem, Prompts, Source, worked_solution
from entropy_rl.training import engine, step

_FIRST = 1 << 20  # the warm-up's problems come from steps that RL does not reach


def negative_logp(logp_BxT, tokens):
    """The supervised objective: (−logp, nothing clipped)."""
    return -logp_BxT, jnp.zeros(logp_BxT.shape, bool)


def run(c: ConfigDict, cfg, params, tokenizer, mesh, source: Source, prompts: Prompts, stop) -> tuple:
    """Parameters after `warmup.updates` updates, and the mean loss (nats a token) of the last tenth of them.

    A pure function of the config and the parameters. `stop()` is looked at before every update; the warm-up is
    then left with SystemExit.
    """
    lr = optax.cosine_decay_schedule(c.warmup.lr, c.warmup.updates, alpha=0.1)
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, b2=0.95, weight_decay=0.0))
    w = c.copy_and_resolve_references()
    with w.unlocked():
        w.rollout.prompts, w.train.updates_per_rollout, w.train.micro_batches = c.warmup.batch, 1, 1
        w.train.layout = c.warmup.layout
    how = step.Method(negative_logp, token_transforms.build([]))
    e = engine.build(w, cfg, tokenizer, mesh, how, opt, samples=1)
    losses, started = [], time.monotonic()
    with e.on_mesh():
        state = e.init(params)
        for i in range(c.warmup.updates):
            stop()
            batch = step.lay_out(e.plan, worked_batch(c, source, prompts, tokenizer, i))
            # packed rows take their statistics from a forward pass, which a first update would do without
            state, metrics = e.update(state, batch, jax.random.key(0), batch.packed is None)
            losses.append(float(metrics["loss"]))  # waits, so that SIGTERM is seen between updates
            if int(state.skipped) > c.optim.max_skipped:
                raise RuntimeError(
                    f"warm-up update {i}: the gradient was not finite in {int(state.skipped)} updates in a row"
                )
            if (i + 1) % max(1, c.warmup.updates // 10) == 0:
                seconds = time.monotonic() - started
                logging.info(
                    "warm-up %d/%d  loss %.3f  %.0fs left",
                    i + 1,
                    c.warmup.updates,
                    losses[-1],
                    seconds / (i + 1) * (c.warmup.updates - i - 1),
                )
    last = losses[-max(1, len(losses) // 10) :]
    return state.params, float(np.mean(last))


def worked_batch(c: ConfigDict, source: Source, prompts: Prompts, tokenizer, i: int) -> step.Batch:
    """Update i's batch: `warmup.batch` problems, each with one worked solution and the end of sequence."""
    problems = source.train(_FIRST + i, c.warmup.batch)
    prompt, prompt_mask = prompts(problems)
    T = c.rollout.max_tokens
    tokens, mask = np.zeros((len(problems), T), np.int32), np.zeros((len(problems), T), np.int32)
    for row, problem in enumerate(problems):
        ids = worked_ids(c, problem, tokenizer, i)
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    zeros = np.zeros(tokens.shape, np.float32)
    uid = np.array([p.uid for p in problems], np.uint32)
    return step.Batch(
        prompt, prompt_mask, tokens, mask, np.ones(len(problems), bool), zeros, zeros, zeros, zeros, zeros, uid
    )


def worked_ids(c: ConfigDict, problem: Problem, tokenizer, i: int) -> list[int]:
    """Tokens of a worked solution and the end of sequence. ValueError: there is none, or it is too long."""
    rng = random.Random(f"{c.seed} {i} {problem.uid}")
    text = worked_solution(problem, rng, c.warmup.error_rate, c.warmup.misread_rate)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    if len(ids) > c.rollout.max_tokens:
        raise ValueError(
            f"rollout.max_tokens={c.rollout.max_tokens} is below the {len(ids)} tokens of a worked solution: {text!r}"
        )
    return ids


def fault(c: ConfigDict, prompts: Prompts, tokenizer, problem: Problem) -> str | None:
    """What keeps a problem out of the warm-up, or None."""
    try:
        worked_ids(c, problem, tokenizer, 0)
    except ValueError as error:
        return str(error)
    return prompts.fault(problem)
