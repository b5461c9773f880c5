"""The training loop, top to bottom: prompts, rollout, reward, advantage, updates, metrics, evaluation, checkpoint.

Shapes: N prompts, G samples a prompt, B = N·G, T response positions.

A run is a pure function of (config, step) and the state that a checkpoint holds, so that one which was interrupted
and goes on equals one which was not, bit for bit.
"""

import math
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from entropy_rl import advantages, law, metrics, warmup
from entropy_rl import config as config_lib
from entropy_rl import engine as engine_lib
from entropy_rl import step as step_lib
from entropy_rl.checkpoint import Checkpoints
from entropy_rl.data import Prompts, Task
from entropy_rl.policy import responses
from entropy_rl.preemption import EXIT_CODE, Preemption
from entropy_rl.rewards import Grader


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
    meta = {"config": metrics.config_hash(c.to_dict())}
    mesh = engine_lib.make_mesh(c)
    task = Task(c.data.task, c.data.settings.to_dict(), c.seed)
    advantage_of = advantages.build(config_lib.named(c.algo.advantage))
    engine_lib.method(c)
    cfg, tokenizer, weights = engine_lib.load(c)
    prompts = Prompts(c.data, tokenizer)
    look_ahead(c, cfg, task, prompts, tokenizer)
    e = engine_lib.build(c, cfg, tokenizer, mesh)

    with e.on_mesh(), Preemption() as preemption, Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
        restored = checkpoints.restore(e.abstract_state)
        start = None if restored is None else int(restored[1]["step"])
        log = metrics.RunLog(workdir, start)
        log.config(c.to_dict())
        if restored is None:
            params = weights(e.params_sharding)
            row = {"step": 0}
            if c.warmup.updates:
                params, row["warmup/loss"] = warmup.run(
                    c, cfg, params, tokenizer, mesh, task, prompts, preemption.check
                )
            state = e.init(params)
            del params
            if c.eval.every:
                row |= evaluate(e, c, state.params, task, prompts, grader)
            log.write(row)
            logging.info("step 0  %s", accuracy_text(row))
            if c.warmup.updates:
                checkpoints.save(0, state, meta)
        else:
            state = restored[0]
        del restored
        history = [r for r in metrics.read_jsonl(epath.Path(workdir) / "metrics.jsonl") if r["step"]]
        root, began, start = jax.random.fold_in(jax.random.key(c.seed), 1), time.monotonic(), start or 0

        for step in range(start + 1, c.train.steps + 1):
            if profile and step in (start + 3, start + 3 + profile):
                trace(workdir, stop=step > start + 3)
            key, marks = jax.random.fold_in(root, step), [time.monotonic()]

            # Rollout: G responses to each prompt, with logp and entropy of every token.
            problems = task.train(step, c.rollout.prompts)
            prompt, prompt_mask = prompts(problems)
            uid = np.array([p.uid for p in problems], np.uint32)
            out = jax.device_get(e.rollout(state.params, prompt, prompt_mask, uid, jax.random.fold_in(key, 0)))
            marks.append(time.monotonic())

            # Reward and advantage: what could not be scored is masked, not zero.
            texts = [r.text for r in responses(out, tokenizer)]
            owners = [problems[b // c.rollout.samples] for b in range(len(texts))]
            scores = grader.grade([(p.kind, text, p.entry) for p, text in zip(owners, texts, strict=True)])
            valid = np.array([s is not None for s in scores])
            reward = np.array([s or 0.0 for s in scores], np.float32)
            advantage = np.asarray(advantage_of(jnp.asarray(reward), jnp.asarray(valid), c.rollout.samples))
            marks.append(time.monotonic())

            # Updates: each of whole groups; the rollout is scored once where there is more than one.
            batch = step_lib.Batch(
                prompt,
                prompt_mask,
                out.tokens,
                out.mask,
                valid,
                advantage[:, None] * out.mask.astype(np.float32),
                out.logp,
                out.entropy,
                out.logp,
                np.zeros_like(out.logp),
                row_uids(problems, c.rollout.samples),
            )
            parts = [lay_out(e.plan, part) for part in cut(batch, c.train.updates_per_rollout)]
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

            row = (
                {"step": step}
                | update_row(updates)
                | rollout_row(out, reward, valid, c.rollout.samples, marks, prompt_mask, c)
            )
            evaluate_now = c.eval.every and (step % c.eval.every == 0 or step == c.train.steps)
            if evaluate_now:
                row |= evaluate(e, c, state.params, task, prompts, grader)
            history.append(row)
            row = log.write(row | law_row(history))
            log.sample(sample_rows(step, c.log.samples, owners, texts, out, scores, advantage))
            logging.info(
                "%s%s",
                metrics.progress(row, step, c.train.steps, (time.monotonic() - began) / (step - start)),
                f"  {accuracy_text(row)}" if evaluate_now else "",
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


def look_ahead(c: ConfigDict, cfg, task: Task, prompts: Prompts, tokenizer) -> None:
    """Makes the first prompts of every kind, so that data that does not fit is known before anything compiles."""
    prompts(task.train(1, c.rollout.prompts))
    if c.eval.every:
        prompts(task.held_out(c.eval.problems))
    if c.warmup.updates:
        warmup.worked_batch(c, task, prompts, tokenizer, 0)
    if c.data.max_prompt_len + c.rollout.max_tokens > cfg.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {cfg.max_positions} positions"
        )


def cut(batch: step_lib.Batch, updates: int) -> list[step_lib.Batch]:
    """The rollout as `updates` batches of whole groups, in order."""
    piece = lambda i: jax.tree.map(lambda x: x[len(x) // updates * i : len(x) // updates * (i + 1)], batch)
    return [piece(i) for i in range(updates)]


def lay_out(plan, part: step_lib.Batch) -> step_lib.Batch:
    """The update's batch with its packed rows, where these are cheaper."""
    return part._replace(packed=plan.pack(part.prompt, part.prompt_mask, part.tokens, part.mask))


def score(e: engine_lib.Engine, c: ConfigDict, state, parts: list[step_lib.Batch]) -> list[step_lib.Batch]:
    """The updates' batches with old and reference logp, where they are needed and the sampler's do not serve."""
    if state.ref is not None:
        parts = [part._replace(ref_logp=e.score(state.ref, part)[0]) for part in parts]
    for i, part in enumerate(parts):
        # The first update is on-policy: in one piece it computes its own statistics, in several it takes these.
        if i or c.train.micro_batches > 1 or part.packed is not None:
            logp, entropy = e.score(state.params, part)
            parts[i] = part._replace(old_logp=logp, old_entropy=entropy)
    return parts


def row_uids(problems, samples: int) -> np.ndarray:
    """u32[B]: a hash of (prompt, sample), which random draws and ties hang on."""
    return np.array([zlib.crc32(b"%d %d" % (p.uid, g)) for p in problems for g in range(samples)], np.uint32)


def update_row(updates: list[dict]) -> dict:
    """Means over a step's updates, of each metric over those that have it; skipped ones are counted and left out."""
    done = [u for u in updates if not u["grad/skipped"]] or updates
    keys = {k: None for u in done for k in u}
    row = {k: float(np.mean([u[k] for u in done if k in u])) for k in keys}
    return row | {"grad/skipped": int(sum(u["grad/skipped"] for u in updates))}


def rollout_row(out, reward, valid, samples: int, marks: list[float], prompt_mask, c: ConfigDict) -> dict:
    """What the rollout itself says: rewards, the sampling policy's entropy over its own tokens, lengths, speed."""
    tokens = int(out.mask.sum())
    groups, scored = reward.reshape(-1, samples), valid.reshape(-1, samples)
    spread = np.where(scored, groups, -np.inf).max(1) > np.where(scored, groups, np.inf).min(1)
    prompt_tokens = int(prompt_mask.sum()) * samples
    return {
        "reward/mean": float(reward[valid].mean()) if valid.any() else None,
        "reward/std": float(reward[valid].std()) if valid.any() else None,
        "reward/unscored": int((~valid).sum()),
        **{k: float(v) for k, v in jax.device_get(engine_lib.rollout_entropy(out.logp, out.entropy, out.mask)).items()},
        "length/mean": tokens / len(out.mask),
        "length/clipped_frac": float(1 - out.finished.mean()),
        "group/degenerate_frac": float(1 - spread.mean()),
        "throughput/rollout_tokens_per_s": tokens / (marks[1] - marks[0]),
        # tokens of whole sequences, prompt and response, that the updates consumed
        "throughput/train_tokens_per_s": (tokens + prompt_tokens) / (marks[3] - marks[2]),
        "time/rollout_s": marks[1] - marks[0],
        "time/reward_s": marks[2] - marks[1],
        "time/train_s": marks[3] - marks[2],
    }


def law_row(history: list[dict]) -> dict:
    """R = −a·exp(H) + b over the run so far, once there are points and spread enough (arXiv 2505.22617)."""
    fitted = law.fit([r["entropy/mean"] for r in history], [r["reward/mean"] for r in history])
    return {"law/a": fitted.a, "law/b": fitted.b, "law/ceiling": fitted.ceiling}


def evaluate(e: engine_lib.Engine, c: ConfigDict, params, task: Task, prompts: Prompts, grader: Grader) -> dict:
    """Greedy accuracy on the fixed held-out problems, with its 95% Wilson interval."""
    problems, right, scored = task.held_out(c.eval.problems), 0, 0
    for i in range(0, len(problems), c.eval.batch):
        some = problems[i : i + c.eval.batch]
        padded = some + [some[0]] * (c.eval.batch - len(some))
        tokens, mask = prompts(padded)
        uid = np.zeros(len(padded), np.uint32)
        out = jax.device_get(e.greedy(params, tokens, mask, uid, jax.random.key(0)))
        texts = [r.text for r in responses(out, e.tokenizer)]
        scores = grader.grade([(p.kind, text, p.entry) for p, text in zip(some, texts)])
        right += sum(s == 1.0 for s in scores if s is not None)
        scored += sum(s is not None for s in scores)
    low, high = wilson(right, scored)
    name = f"eval/{task.name}"
    return {f"{name}/accuracy": right / scored, f"{name}/low": low, f"{name}/high": high, f"{name}/problems": scored}


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a share of `right` in `n` (Wilson 1927)."""
    p, centre = right / n, (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_text(row: dict) -> str:
    """`chain_sum 41.0% [34.4, 47.9]` for every evaluation in a row of metrics."""
    names = [k.split("/")[1] for k in row if k.startswith("eval/") and k.endswith("/accuracy")]
    return "  ".join(
        f"{n} {row[f'eval/{n}/accuracy']:.1%} [{100 * row[f'eval/{n}/low']:.1f}, {100 * row[f'eval/{n}/high']:.1f}]"
        for n in names
    )


def sample_rows(step: int, n: int, owners, texts, out, scores, advantage) -> list[dict]:
    """The first n responses of a step, as they go to samples.jsonl."""
    return [
        {
            "step": step,
            "question": owners[b].question,
            "response": texts[b],
            "reward": scores[b],
            "advantage": advantage[b],
            "length": out.mask[b].sum(),
            "finished": out.finished[b],
            "entropy": out.entropy[b].sum() / max(1, out.mask[b].sum()),
        }
        for b in range(min(n, len(texts)))
    ]
