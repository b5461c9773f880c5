"""The training loop, top to bottom: prompts, rollout, reward, advantage, updates, metrics, evaluation, checkpoint.

Shapes: N prompts, G samples a prompt, B = N·G, T response positions.

A run is a pure function of (config, step) and the state that a checkpoint holds, so that one which was interrupted
and goes on equals one which was not, bit for bit.
"""

import functools
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl import law
from entropy_rl.data import Prompts, Sources
from entropy_rl.evaluation import respond as evaluation
from entropy_rl.objective import advantages
from entropy_rl.record import metrics
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.rewards import Grader
from entropy_rl.runtime.preemption import EXIT_CODE, Preemption
from entropy_rl.sampling import client as server
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import experience, warmup
from entropy_rl.training import step as step_lib


def run(c: ConfigDict, workdir: str, force: bool = False, profile: int = 0) -> None:
    """Trains in `workdir`, from its newest checkpoint where it has one.

    Args:
        c: the configuration.
        workdir: the run directory; holds the whole record of the run.
        force: go on although the run was started with another configuration.
        profile: trace so many steps, the third and those after it, into the run directory.

    Raises:
        ValueError: a wrong configuration, model, data or run directory, before any work.
        RuntimeError: no response could be scored, or too many updates in a row were not finite.
        SystemExit: code 75 after SIGTERM, once the state is saved. A warm-up saves nothing until its end.
    """
    config_lib.check(c)
    checkpoints = Checkpoints(epath.Path(workdir) / "checkpoints", c.checkpoint.keep)
    if checkpoints.steps():
        metrics.check_config(workdir, c.to_dict(), force=force)
    mesh = engine_lib.mesh_of(c)
    sources = Sources(c)
    advantage_of = advantages.build(config_lib.named(c.algo.advantage))
    engine_lib.method(c)
    cfg, tokenizer, weights = engine_lib.load(c)
    prompts = Prompts(c.data, tokenizer, sources.train.train)
    look_ahead(c, cfg, sources, prompts, tokenizer)
    meta: dict[str, Any] = {"config": metrics.config_hash(c.to_dict()), "data": sources.digests()}
    e = engine_lib.build(c, cfg, tokenizer, mesh)
    examine = evaluation.in_training(e, c, prompts, sources.evals)

    with e.on_mesh(), Preemption() as preemption, Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
        restored = checkpoints.restore(e.abstract_state)
        start = None if restored is None else int(restored[1]["step"])
        if restored is not None:
            check_data(restored[1].get("data", meta["data"]), meta["data"], force)
        log = metrics.RunLog(workdir, start)
        log.config(c.to_dict())
        if restored is None:
            params = weights(e.params_sharding)
            row = {"step": 0}
            if c.warmup.updates:
                params, row["warmup/loss"] = warmup.run(
                    c, cfg, params, tokenizer, mesh, sources.warmup, prompts, preemption.check
                )
            state = e.init(params)
            del params
            if c.eval.every:
                row |= examine(state.params, grader)
            log.write(row)
            logging.info("step 0  %s", evaluation.accuracy_text(row))
            if c.warmup.updates:
                checkpoints.save(0, state, meta)
        else:
            state = restored[0]
        del restored
        history = log.history()
        root, began, start = jax.random.fold_in(jax.random.key(c.seed), 1), time.monotonic(), start or 0
        step_began = began

        for step in range(start + 1, c.train.steps + 1):
            if profile and step in (start + 3, start + 3 + profile):
                trace(workdir, stop=step > start + 3)
            key = jax.random.fold_in(root, step)

            # Rollout and rewards: G responses to each prompt, with logp and entropy of every token. Groups that are all
            # right or all wrong may give way to fresh ones; what the policy itself did is in `first`.
            draw = functools.partial(experience.collect, e, c, state.params, sources.train, prompts, grader, step, key)
            first = draw()
            x, refilled = experience.refill(first, draw, c.rollout.refills)

            # Advantage: what could not be scored is masked, not zero.
            advantage = np.asarray(advantage_of(jnp.asarray(x.reward_B), jnp.asarray(x.valid_B), c.rollout.samples))
            marks = [time.monotonic()]  # the updates begin, the updates end

            # Updates: each of whole groups; the rollout is scored once where there is more than one.
            out = x.out
            batch = step_lib.Batch(
                x.prompt_NxP,
                x.prompt_mask_NxP,
                out.tokens,
                out.mask,
                x.valid_B & (out.finished | (not c.reward.mask_truncated)),
                advantage[:, None] * out.mask.astype(np.float32),
                x.old_logp,
                out.entropy,
                out.logp,
                np.zeros_like(out.logp),
                row_uids(x.uid_N, c.rollout.samples),
            )
            parts = [step_lib.lay_out(e.plan, part) for part in step_lib.cut(batch, c.train.updates_per_rollout)]
            parts = score(e, c, state, parts)
            updates = []
            for i, part in enumerate(parts):
                measure = c.measure.every and step % c.measure.every == 0 and i == 0
                update = e.measured_update if measure else e.update
                state, update_metrics = update(state, part, jax.random.fold_in(key, 1 + i), i == 0)
                updates.append(update_metrics)
            state = state._replace(step=jnp.full_like(state.step, step))
            updates = jax.device_get(updates)
            marks.append(time.monotonic())
            if int(state.skipped) > c.optim.max_skipped:
                raise RuntimeError(
                    f"step {step}: the gradient was not finite in {int(state.skipped)} updates in a row "
                    f"(optim.max_skipped={c.optim.max_skipped}); the last checkpoint is sound"
                )

            row = {"step": step} | update_row(updates) | rollout_row(first) | refilled
            evaluate_now = c.eval.every and (step % c.eval.every == 0 or step == c.train.steps)
            marks.append(time.monotonic())
            if evaluate_now:
                row |= examine(state.params, grader)
            marks.append(time.monotonic())
            row |= speed_row(first, x, refilled, marks[1] - marks[0], marks[3] - marks[2], marks[3] - step_began)
            step_began = marks[3]
            history.append(row)
            row = log.write(row | law_row(history))
            log.sample(sample_rows(step, c.log.samples, x, advantage))
            logging.info(
                "%s%s",
                metrics.progress(row, step, c.train.steps, (time.monotonic() - began) / (step - start)),
                f"  {evaluation.accuracy_text(row)}" if evaluate_now else "",
            )

            last, stop = step == c.train.steps, preemption.requested
            if last or stop or step % c.checkpoint.every == 0:
                checkpoints.save(step, state, meta)
            if profile and (last or stop) and start + 3 <= step < start + 3 + profile:
                trace(workdir, stop=True)
            if stop and not last:
                raise SystemExit(EXIT_CODE)


def trace(workdir: str, stop: bool) -> None:
    """Starts or stops a profile in workdir/profile, for XProf, TensorBoard or ui.perfetto.dev."""
    if stop:
        jax.profiler.stop_trace()
    else:
        jax.profiler.start_trace(str(epath.Path(workdir) / "profile"))


def look_ahead(c: ConfigDict, cfg, sources: Sources, prompts: Prompts, tokenizer) -> None:
    """Looks at every row, makes the first batches and asks the server, so that what does not fit is known early."""
    sources.fit(prompts.fault, functools.partial(warmup.fault, c, prompts, tokenizer), c.data.bad_rows)
    prompts(sources.train.train(1, c.rollout.prompts))
    for problems in sources.evals.values():
        prompts(problems)
    if c.warmup.updates:
        warmup.worked_batch(c, sources.warmup, prompts, tokenizer, 0)
    if c.data.max_prompt_len + c.rollout.max_tokens > cfg.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {cfg.max_positions} positions"
        )
    if c.rollout.server:
        if jax.process_count() > 1:
            raise ValueError(f"rollout.server={c.rollout.server!r} serves a run of one process; set it to '' on a pod")
        prompt, mask = prompts(sources.train.train(1, 1))
        there = server.connect(c.rollout.server, c.rollout.server_weights)
        there.check(prompt[mask > 0].tolist(), c.rollout.temperature)


def check_data(before: dict[str, str], now: dict[str, str], force: bool) -> None:
    """ValueError where a run would go on with other data than it started with, unless it is forced to."""
    changed = [f"{k}: {before.get(k)} in the run, {now.get(k)} now" for k in now if before.get(k) != now[k]]
    if changed and not force:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"data.task: the run was started with other data:\n  {listed}\n"
            "Put the old data back, start in another workdir, or force the change"
        )


def score(e: engine_lib.Engine, c: ConfigDict, state, parts: list[step_lib.Batch]) -> list[step_lib.Batch]:
    """The updates' batches with old and reference logp, where they are needed and the sampler's do not serve."""
    if state.ref is not None:
        parts = [part._replace(ref_logp=e.score(state.ref, part)[0]) for part in parts]
    for i, part in enumerate(parts):
        # The first update is on-policy: in one piece it computes its own statistics, in several it takes these.
        # What a server made has been scored already.
        if c.rollout.server:
            continue
        if i or c.train.micro_batches > 1 or part.packed is not None:
            logp, entropy = e.score(state.params, part)
            parts[i] = part._replace(old_logp=logp, old_entropy=entropy)
    return parts


def row_uids(uid_N: np.ndarray, samples: int) -> np.ndarray:
    """u32[B]: a hash of (prompt, sample), which random draws and ties hang on."""
    return np.array([zlib.crc32(b"%d %d" % (uid, g)) for uid in uid_N for g in range(samples)], np.uint32)


def update_row(updates: list[dict]) -> dict:
    """Means over a step's updates, of each metric over those that have it; skipped ones are counted and left out."""
    done = [u for u in updates if not u["grad/skipped"]] or updates
    keys = {k: None for u in done for k in u}
    row = {k: float(np.mean([u[k] for u in done if k in u])) for k in keys}
    return row | {"grad/skipped": int(sum(u["grad/skipped"] for u in updates))}


def rollout_row(x: experience.Experience) -> dict:
    """What a rollout itself says: rewards, the sampling policy's entropy over its own tokens, lengths."""
    out, entropy = x.out, engine_lib.rollout_entropy(x.out.logp, x.out.entropy, x.out.mask)
    spread = np.where(x.valid_B, x.reward_B, -np.inf).reshape(len(x.problems), -1).max(1) > np.where(
        x.valid_B, x.reward_B, np.inf
    ).reshape(len(x.problems), -1).min(1)
    return {
        **experience.reward_row(x),
        **{k: float(v) for k, v in jax.device_get(entropy).items()},
        "length/mean": int(out.mask.sum()) / len(out.mask),
        "length/clipped_frac": float(1 - out.finished.mean()),
        "group/degenerate_frac": float(1 - spread.mean()),
    }


def speed_row(
    first: experience.Experience,
    x: experience.Experience,
    refilled: dict,
    train_seconds: float,
    eval_seconds: float,
    seconds: float,
) -> dict:
    """Tokens a second, sampled in all rounds and consumed by the updates (whole sequences), and where the time went.

    `time/other_s` is what is neither, since the last row: prompts, metrics, logs, checkpoints.
    """
    samples = len(x.texts) // len(x.problems)
    return {
        "throughput/rollout_tokens_per_s": (int(first.out.mask.sum()) + refilled.get("refill/tokens", 0))
        / x.seconds[0],
        "throughput/train_tokens_per_s": (int(x.out.mask.sum()) + int(x.prompt_mask_NxP.sum()) * samples)
        / train_seconds,
        "time/rollout_s": x.seconds[0],
        "time/reward_s": x.seconds[1],
        "time/train_s": train_seconds,
        "time/eval_s": eval_seconds,
        "time/other_s": seconds - sum(x.seconds) - train_seconds - eval_seconds,
    }


def law_row(history: list[dict]) -> dict:
    """R = −a·exp(H) + b over the run so far, once there are points and spread enough (arXiv 2505.22617)."""
    fitted = law.fit([r["entropy/mean"] for r in history], [r["reward/mean"] for r in history])
    return {"law/a": fitted.a, "law/b": fitted.b, "law/ceiling": fitted.ceiling}


def sample_rows(step: int, n: int, x: experience.Experience, advantage) -> list[dict]:
    """The first n responses of a step, as they go to samples.jsonl."""
    return [
        {
            "step": step,
            "question": x.owner(b).question,
            "response": x.texts[b],
            "reward": x.reward_B[b] if x.valid_B[b] else None,
            "advantage": advantage[b],
            "length": x.out.mask[b].sum(),
            "finished": x.out.finished[b],
            "entropy": float(x.out.entropy[b].sum()) / max(1, int(x.out.mask[b].sum())),
        }
        for b in range(min(n, len(x.texts)))
    ]
