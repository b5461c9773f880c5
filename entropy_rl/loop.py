"""The training loop, top to bottom: prompts, rollout, reward, advantage, updates, metrics, evaluation, checkpoint.

Shapes: N prompts, G samples per prompt, B = N·G, T response positions.

A run is a pure function of (config, step) and the state that a checkpoint holds. So a run that was interrupted and
resumed equals one that was not, bit for bit.
"""

import functools
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.data import PromptEncoder, Sources
from entropy_rl.data.prompts import check_templates
from entropy_rl.evaluation.in_training import Examiner, accuracy_text
from entropy_rl.model.transformer import Params
from entropy_rl.objective import advantages
from entropy_rl.record import metrics
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.rewards import Grader
from entropy_rl.runtime.clock import Clock
from entropy_rl.runtime.preemption import EXIT_CODE, Preemption
from entropy_rl.runtime.profile import Profiler
from entropy_rl.training import checks, warmup
from entropy_rl.training import engine as engine_lib
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.engine import Engine
from entropy_rl.training.experience import Collector, Experience, refill
from entropy_rl.training.rows import law_row, rollout_row, sample_rows, speed_row, update_row
from entropy_rl.training.update import Metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Setup(NamedTuple):
    """A run before its first step: everything is known to fit, nothing is compiled.

    Attributes:
        c: the configuration.
        engine: what the run computes with.
        tokenizer: the model's.
        sources: the problems.
        encoder: makes tokens of them.
        lessons: the warm-up's batches.
        weights: shardings -> the parameters, made or read.
        advantage_of: (reward_B, valid_B, G) -> advantage_B.
        meta: goes into every checkpoint: hashes of the configuration and of the data.
    """

    c: ConfigDict
    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    sources: Sources
    encoder: PromptEncoder
    lessons: warmup.Lessons
    weights: Callable[[engine_lib.Shardings], Params]
    advantage_of: Callable[[jax.Array, jax.Array, int], jax.Array]
    meta: dict[str, Any]


def run(c: ConfigDict, workdir: str, force: bool = False, profile: int = 0) -> None:
    """Trains in `workdir`, from its newest checkpoint if it has one.

    Args:
        c: the configuration.
        workdir: the run directory, which holds the whole record of the run.
        force: resume although the run was started with another configuration.
        profile: trace this many steps, from the third on, into the run directory.

    Raises:
        ValueError: A wrong configuration, model, data or run directory, before any work.
        RuntimeError: No response could be scored, or too many updates in a row were not finite.
        SystemExit: Code 75 after SIGTERM, once the state is saved. A warm-up saves nothing before its end.
    """
    config_lib.check(c)
    checkpoints = Checkpoints(epath.Path(workdir) / "checkpoints", c.checkpoint.keep)
    if checkpoints.steps():
        metrics.check_config(workdir, c.to_dict(), force=force)
    setup, clock = prepare(c), Clock()
    engine, sources = setup.engine, setup.sources

    with engine.on_mesh(), Preemption() as preemption, Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
        collector = Collector(engine, setup.tokenizer, c.rollout, c.reward, sources.train, setup.encoder, grader, clock)
        examiner = Examiner(engine, setup.tokenizer, c.eval, setup.encoder, sources.evals, grader)
        state, log, start = begin(setup, workdir, checkpoints, examiner, preemption, force)
        history, root, began = log.history(), jax.random.fold_in(jax.random.key(c.seed), 1), time.monotonic()
        clock.lap()

        with Profiler(workdir, start + 3, profile) as profiler:
            for step in range(start + 1, c.train.steps + 1):
                profiler.at(step)
                key = jax.random.fold_in(root, step)

                # Rollout and rewards: G responses to each prompt, with logp and entropy of every token. Groups that are
                # all right or all wrong may be replaced by new ones; `first` is what the policy itself did.
                collect = functools.partial(collector.collect, state.params, step, key)
                first = collect()
                experience, refilled = refill(first, collect, c.rollout.refills)

                # Advantage: a response that could not be scored is masked; it does not count as wrong.
                rewards = jnp.asarray(experience.reward_B), jnp.asarray(experience.valid_B)
                advantage_B = np.asarray(setup.advantage_of(*rewards, c.rollout.samples))

                # Updates: each of whole groups.
                with clock("train"):
                    batch = batch_of(experience, advantage_B, c.reward.mask_truncated)
                    parts = with_old_logp(engine, state, engine.parts(batch))
                    state, updates = update_all(engine, state, parts, key, measure=due(step, c.measure.every))
                    state = state._replace(step=jnp.full_like(state.step, step))
                check_finite(step, int(state.skipped), c.optim.max_skipped)

                # Metrics and evaluation.
                row, last = {"step": step} | update_row(updates) | rollout_row(first) | refilled, step == c.train.steps
                if due(step, c.eval.every) or (c.eval.every and last):
                    with clock("eval"):
                        row |= examiner.examine(state.params)
                row |= speed_row(first, experience, refilled.get("refill/tokens", 0), clock.lap())
                history.append(row)
                row = log.write(row | law_row(history))
                log.sample(sample_rows(step, c.log.samples, experience, advantage_B))
                line = metrics.progress(row, step, c.train.steps, (time.monotonic() - began) / (step - start))
                logging.info("%s", f"{line}  {accuracy_text(row)}".rstrip())

                # Checkpoint, and the end of a run that was asked to stop.
                stop = preemption.requested
                if last or stop or due(step, c.checkpoint.every):
                    checkpoints.save(step, state, setup.meta)
                if stop and not last:
                    raise SystemExit(EXIT_CODE)


def prepare(c: ConfigDict) -> Setup:
    """Opens data and model and checks that they fit together, before anything is compiled.

    Raises:
        ValueError: They do not; names the key, or the file and row.
    """
    mesh = engine_lib.mesh_of(c)
    advantage_of = advantages.build(config_lib.named(c.algo.advantage))
    engine_lib.method_of(c.algo, c.rollout, c.train)  # refuses wrong names before the model is opened
    model_config, tokenizer, weights = engine_lib.load(c.model, c.seed)
    check_templates(c.data, tokenizer)  # a wrong template would make every row of a file a bad one
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    encoder = PromptEncoder(c.data, tokenizer, sources.train.train, model_config.vocab_size)
    lessons = warmup.Lessons(c.warmup, c.seed, c.rollout.max_tokens, sources.warmup, encoder, tokenizer)
    checks.check_problems(c, sources, encoder, lessons)
    checks.check_length(c, model_config)
    checks.check_server(c.rollout, sources, encoder)
    meta = {"config": metrics.config_hash(c.to_dict()), "data": sources.digests()}
    engine = Engine.of(c, model_config, tokenizer, mesh)
    return Setup(c, engine, tokenizer, sources, encoder, lessons, weights, advantage_of, meta)


def begin(
    setup: Setup, workdir: str, checkpoints: Checkpoints, examiner: Examiner, preemption: Preemption, force: bool
) -> tuple[TrainState, metrics.RunLog, int]:
    """(the state, the record, the last step done): of the newest checkpoint, or new, after the warm-up.

    Raises:
        ValueError: The run was started with other data, and `force` is not set.
    """
    c, engine, meta = setup.c, setup.engine, setup.meta
    if (restored := checkpoints.restore(engine.abstract_state)) is not None:
        state, saved = restored
        checks.check_data(saved.get("data", meta["data"]), meta["data"], force)
        log = metrics.RunLog(workdir, int(saved["step"]))
        log.config(c.to_dict())
        return state, log, int(saved["step"])
    log = metrics.RunLog(workdir, None)
    log.config(c.to_dict())
    params, row = setup.weights(engine.params_sharding), dict[str, Any](step=0)
    if c.warmup.updates:
        taught = warmup.engine_of(c, engine.model_config, setup.tokenizer, engine.mesh)
        params, row["warmup/loss"] = warmup.run(
            c.warmup, c.optim.max_skipped, taught, params, setup.lessons, preemption.check
        )
    state = engine.init(params)
    if c.eval.every:
        row |= examiner.examine(state.params)
    log.write(row)
    logging.info("step 0  %s", accuracy_text(row))
    if c.warmup.updates:
        checkpoints.save(0, state, meta)
    return state, log, 0


def due(step: int, every: int) -> bool:
    """Whether a step is one of every `every`; 0: never."""
    return every > 0 and step % every == 0


def batch_of(experience: Experience, advantage_B: np.ndarray, mask_truncated: bool) -> Batch:
    """The batch to train on; `mask_truncated`: responses that were cut push nothing."""
    rollout = experience.rollout
    return Batch.of(
        experience.prompts,
        rollout,
        valid=experience.valid_B & (rollout.finished | (not mask_truncated)),
        advantage=advantage_B,
        old_logp=experience.old_logp,
        uid=row_uids(experience.prompts.uid_N, experience.samples),
    )


def row_uids(uid_N: np.ndarray, samples: int) -> np.ndarray:
    """u32[B]: a hash of (prompt, sample), which random draws and ties depend on."""
    return np.array([zlib.crc32(b"%d %d" % (uid, g)) for uid in uid_N for g in range(samples)], np.uint32)


def with_old_logp(engine: Engine, state: TrainState, parts: list[Batch]) -> list[Batch]:
    """The updates' batches with old and reference logp, where these are needed and the sampler's do not serve."""
    if state.ref is not None:
        parts = [part._replace(ref_logp=engine.score(state.ref, part)[0]) for part in parts]
    if not engine.sampler.measures_entropy:  # these responses have been scored already
        return parts
    for i, part in enumerate(parts):
        # The first update is on-policy: in one piece it computes its own statistics, in several it takes these.
        if i or engine.micro_batches > 1 or part.packed is not None:
            logp, entropy = engine.score(state.params, part)
            parts[i] = part._replace(old_logp=logp, old_entropy=entropy)
    return parts


def update_all(
    engine: Engine, state: TrainState, parts: list[Batch], key: jax.Array, measure: bool
) -> tuple[TrainState, list[Metrics]]:
    """The step's updates: (state, metrics of each, on the host); `measure`: with the first one's effect on entropy."""
    updates = []
    for i, part in enumerate(parts):
        update = engine.measured_update if measure and i == 0 else engine.update
        state, update_metrics = update(state, part, jax.random.fold_in(key, 1 + i), on_policy=i == 0)
        updates.append(update_metrics)
    return state, jax.device_get(updates)


def check_finite(step: int, skipped: int, max_skipped: int) -> None:
    """Ends the run after too many updates in a row whose gradient was not finite.

    Raises:
        RuntimeError: More than `max_skipped` were skipped.
    """
    if skipped > max_skipped:
        raise RuntimeError(
            f"step {step}: the gradient was not finite in {skipped} updates in a row "
            f"(optim.max_skipped={max_skipped}); the last checkpoint is sound"
        )
