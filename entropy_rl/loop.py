"""The training loop, top to bottom: prompts, rollout, reward, advantage, updates, metrics, evaluation, checkpoint.

Shapes: N prompts, G samples per prompt, B = N·G, T response positions.

A run is a pure function of (config, step) and the state that a checkpoint holds. So a run that was interrupted and
resumed equals one that was not, bit for bit.
"""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.evaluation.in_training import Examiner
from entropy_rl.record import metrics
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.hf_folders import HfFolders
from entropy_rl.record.keeper import Keeper
from entropy_rl.record.lock import Lock
from entropy_rl.record.rollouts import RolloutLog
from entropy_rl.record.show import Show
from entropy_rl.rewards import Grader
from entropy_rl.runtime import distributed, preemption
from entropy_rl.runtime.clock import Clock
from entropy_rl.runtime.files import expand
from entropy_rl.runtime.profile import Profiler
from entropy_rl.start import Desk, Setup, begin, check_directory, check_same_warm_up, conclude, due, prepare, resume
from entropy_rl.training import checks
from entropy_rl.training import engine as engine_lib
from entropy_rl.training.batch import Batch, TrainState, in_turn
from entropy_rl.training.engine import Engine
from entropy_rl.training.experience import Collector, Experience, refill
from entropy_rl.training.rows import recorded, rollout_row, sample_rows, speed_row, state_row, update_row
from entropy_rl.training.update import FATES, Metrics, TokenRecord


def run(c: ConfigDict, workdir: str, force: bool = False, profile: int = 0, warm_up_of: str = "") -> None:
    """Trains in `workdir`, from its newest checkpoint if it has one.

    Args:
        c: the configuration.
        workdir: the run directory, which holds the whole record of the run.
        force: resume although the run was started with another configuration.
        profile: trace this many steps, from the third on, into the run directory.
        warm_up_of: the directory of a run with the same warm-up, whose parameters after it are taken instead of making
            it again; the result is the same, bit for bit. "": make it.

    Raises:
        ValueError: A wrong configuration, model, data or run directory, or one in use, before any work.
        RuntimeError: No response could be scored, too many updates in a row were not finite, or another run has taken
            the directory over.
        OSError: A file could not be written.
        Stopped: The run was asked to stop, by SIGTERM (exit code 75) or Ctrl-C (130). Everything up to the last
            finished step is saved, and so are the updates of a warm-up.
    """
    config_lib.check(c)
    workdir = expand(workdir)
    with preemption.STOP.handled() as stop, Lock(workdir) as lock:
        stop.at_end(lock.release)
        checkpoints = Checkpoints(epath.Path(workdir) / "checkpoints", c.checkpoint.keep, c.checkpoint.keep_every)
        warmed = Checkpoints(epath.Path(workdir) / "warmup", c.checkpoint.keep)
        check_directory(c, workdir, checkpoints, warmed, force)
        if warm_up_of:
            check_same_warm_up(c, warm_up_of)
        setup, clock = prepare(c), Clock()
        engine, sources = setup.engine, setup.sources
        lock.confirm()
        stop.agree(jax.process_count() > 1)
        keeper: Keeper[TrainState] = Keeper(checkpoints, setup.meta, lock, stop, "step {}")

        grading = Grader(c.reward.workers, c.reward.cpu_seconds)
        with engine.on_mesh(), keeper.kept(), grading as grader, Show(c, workdir) as show:
            restored = checkpoints.restore(engine.abstract_state, fresh=engine.fresh())
            if restored is not None:
                checks.check_data(restored[1].get("data", setup.meta["data"]), setup.meta["data"], force)
                engine.sampler.widths.update(restored[1].get("slots", {}))
            begins_at = None if restored is None else int(restored[1]["step"])
            log, rollouts = metrics.RunLog(workdir, begins_at), RolloutLog(workdir, c.log.rollouts_gb)
            log.config(c.to_dict())
            show.follow(log)
            rollouts.resume(0 if begins_at is None else begins_at)
            examiner = Examiner(engine, setup.tokenizer, c.eval, setup.encoder, sources.evals, grader)
            hf_every, model_config = c.checkpoint.hf_every, engine.model_config
            base = engine_lib.base_of(c.model)
            folders = HfFolders(workdir, hf_every, c.train.steps, model_config, setup.tokenizer, lock, base)
            desk = Desk(log, rollouts, keeper, lock, examiner, clock, show, stop, folders)
            state, start = (
                begin(setup, desk, warmed, force, warm_up_of) if restored is None else resume(c, desk, *restored)
            )
            collector = Collector(
                engine, setup.tokenizer, c.rollout, c.reward, sources.train, setup.encoder, grader, clock, c.seed
            )
            with Profiler(workdir, start + 3, profile) as profiler:
                train(setup, desk, collector, state, start, profiler)


def train(
    setup: Setup, desk: Desk, collector: Collector, state: TrainState, start: int, profiler: Profiler
) -> TrainState:
    """Makes the steps after `start`; returns the last state.

    A run may be stopped up to a step's first update, since the state before the step is still whole, and from its last
    update on: the checkpoint holds the row, and a resumed run makes the evaluation that the row lacks.
    """
    c, engine = setup.c, setup.engine
    root = jax.random.fold_in(jax.random.key(c.seed), 1)
    desk.show.starts(start)
    desk.clock.lap()
    for step in range(start + 1, c.train.steps + 1):
        preemption.look()
        profiler.at(step)
        desk.stop.now(f"step {step}'s rollout", f"step {step} will be made again")
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
        with desk.clock("train"):
            batch = batch_of(experience, advantage_B, c.reward.mask_truncated)
            parts = with_old_logp(engine, state, engine.parts(batch))
            preemption.look()
            desk.stop.now(f"step {step}'s updates", f"step {step} will be made again")
            desk.keeper.spent()
            measure, record = due(step, c.measure.every), due(step, c.log.rollouts)
            state, updates, records = update_all(engine, state, parts, key, measure, record)
            state = state._replace(step=jnp.full_like(state.step, step))
        check_finite(step, int(state.skipped), c.optim.max_skipped)

        # Metrics and evaluation.
        row = {"step": step} | update_row(updates) | rollout_row(first) | refilled
        row |= state_row(c.algo.chain, state.token_state)
        row |= speed_row(first, experience, refilled.get("refill/tokens", 0), desk.clock.lap())
        desk.keeper.reached(step, state, row=metrics.plain(row))
        desk.lock.check()
        desk.log.sample(sample_rows(step, c.log.samples, experience, advantage_B))
        if record:
            names = FATES + tuple(c.algo.chain)
            desk.rollouts.write(step, *recorded(experience, advantage_B, records, names, setup.tokenizer))
        conclude(c, desk, state, row)

        if step == c.train.steps or due(step, c.checkpoint.every) or due(step, c.checkpoint.keep_every):
            desk.keeper.save()
        desk.folders.reached(step, state.params)
    return state


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
    """The updates' batches with the old and the reference policy's statistics, where they are needed.

    The old ones are needed where the sampler's do not serve.
    """
    if state.ref is not None:
        scored = [engine.score(engine.reference(state), part) for part in parts]
        parts = [part._replace(ref_logp=r[0], ref_entropy=r[1]) for part, r in zip(parts, scored, strict=True)]
    if not engine.sampler.measures_entropy:  # these responses have been scored already
        return parts
    for i, part in enumerate(parts):
        # The first update is on-policy. It computes its own statistics if it is one piece or its method reads more than
        # these; otherwise it takes these.
        takes_these = (engine.micro_batches > 1 or part.packed is not None) and not engine.method.extras.names
        if i or takes_these or engine.method.turns > 1:
            logp, entropy = engine.score(state.params, part)
            parts[i] = part._replace(old_logp=logp, old_entropy=entropy)
    return parts


def update_all(
    engine: Engine, state: TrainState, parts: list[Batch], key: jax.Array, measure: bool, record: bool
) -> tuple[TrainState, list[Metrics], list[TokenRecord]]:
    """The step's updates, once per turn of the method.

    Args:
        engine: makes them.
        state: before the first; donated.
        parts: the updates' batches.
        key: the step's.
        measure: with the first one's effect on entropy.
        record: with what each did with its tokens; the method has to record.

    Returns:
        (the state after the last, metrics of each, records of each or none), the last two on the host.
    """
    updates, records, turns = [], [], engine.method.turns
    for i, (turn, part) in enumerate(itertools.product(range(turns), parts)):
        if turns > 1:
            part = in_turn(part, turn)
        update = engine.measured_update if measure and i == 0 else engine.update
        state, update_metrics = update(state, part, jax.random.fold_in(key, 1 + i), on_policy=i == 0)
        tokens = update_metrics.pop("tokens", None)
        updates.append(update_metrics)
        if record:
            records.append(tokens)
    return state, jax.device_get(updates), distributed.fetch(records)


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
