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
from entropy_rl.record.keeper import Keeper
from entropy_rl.record.lock import Lock
from entropy_rl.rewards import Grader
from entropy_rl.runtime import distributed, preemption
from entropy_rl.runtime.clock import Clock
from entropy_rl.runtime.files import expand
from entropy_rl.runtime.preemption import Stop
from entropy_rl.runtime.profile import Profiler
from entropy_rl.training import checks, warmup
from entropy_rl.training import engine as engine_lib
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.engine import Engine
from entropy_rl.training.experience import Collector, Experience, refill
from entropy_rl.training.rows import Row, law_row, rollout_row, sample_rows, speed_row, update_row
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
        meta: goes into every checkpoint: hashes of the configuration and of the data, and the widths of sampling.
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


class Desk(NamedTuple):
    """What records a run while it is made.

    Attributes:
        log: metrics and samples.
        keeper: checkpoints.
        lock: the run directory's.
        examiner: evaluates.
        clock: knows where the time went.
        stop: knows whether the run was asked to stop.
    """

    log: metrics.RunLog
    keeper: Keeper[TrainState]
    lock: Lock
    examiner: Examiner
    clock: Clock
    stop: Stop


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
        checkpoints, warmed = (
            Checkpoints(epath.Path(workdir) / name, c.checkpoint.keep) for name in ("checkpoints", "warmup")
        )
        check_directory(c, workdir, checkpoints, warmed, force)
        if warm_up_of:
            check_same_warm_up(c, warm_up_of)
        setup, clock = prepare(c), Clock()
        engine, sources = setup.engine, setup.sources
        lock.confirm()
        stop.agree(jax.process_count() > 1)
        keeper: Keeper[TrainState] = Keeper(checkpoints, setup.meta, lock, stop, "step {}")

        with engine.on_mesh(), keeper.kept(), Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
            restored = checkpoints.restore(engine.abstract_state)
            if restored is not None:
                checks.check_data(restored[1].get("data", setup.meta["data"]), setup.meta["data"], force)
                engine.sampler.widths.update(restored[1].get("slots", {}))
            log = metrics.RunLog(workdir, None if restored is None else int(restored[1]["step"]))
            log.config(c.to_dict())
            examiner = Examiner(engine, setup.tokenizer, c.eval, setup.encoder, sources.evals, grader)
            desk = Desk(log, keeper, lock, examiner, clock, stop)
            state, start = (
                begin(setup, desk, warmed, force, warm_up_of) if restored is None else resume(c, desk, *restored)
            )
            collector = Collector(
                engine, setup.tokenizer, c.rollout, c.reward, sources.train, setup.encoder, grader, clock
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
    root, began = jax.random.fold_in(jax.random.key(c.seed), 1), time.monotonic()
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
            state, updates = update_all(engine, state, parts, key, measure=due(step, c.measure.every))
            state = state._replace(step=jnp.full_like(state.step, step))
        check_finite(step, int(state.skipped), c.optim.max_skipped)

        # Metrics and evaluation.
        row = {"step": step} | update_row(updates) | rollout_row(first) | refilled
        row |= speed_row(first, experience, refilled.get("refill/tokens", 0), desk.clock.lap())
        desk.keeper.reached(step, state, row=metrics.plain(row))
        desk.lock.check()
        desk.log.sample(sample_rows(step, c.log.samples, experience, advantage_B))
        row = conclude(c, desk, state, row)
        line = metrics.progress(row, step, c.train.steps, (time.monotonic() - began) / (step - start))
        logging.info("%s", f"{line}  {accuracy_text(row)}".rstrip())

        if step == c.train.steps or due(step, c.checkpoint.every):
            desk.keeper.save()
    return state


def conclude(c: ConfigDict, desk: Desk, state: TrainState, row: Row) -> Row:
    """Makes the evaluation that a step ends with, if it is due, and writes the step's row; returns it as written."""
    step = row["step"]
    if due(step, c.eval.every) or (c.eval.every and step == c.train.steps):
        desk.stop.now(f"step {step}'s evaluation", "the evaluation will be made again")
        row = row | desk.examiner.examine(state.params)
        row["time/eval_s"] = desk.clock.lap()["total"]
    desk.lock.check()
    row = desk.log.write(row | (law_row([*desk.log.history(), row]) if step else {}))
    desk.stop.now(f"the end of step {step}")
    return row


def prepare(c: ConfigDict) -> Setup:
    """Opens data and model and checks that they fit together, before anything is compiled.

    Raises:
        ValueError: They do not; names the key, or the file and row.
    """
    mesh = engine_lib.mesh_of(c)
    advantage_of = advantages.build(config_lib.named(c.algo.advantage))
    engine_lib.method_of(c.algo, c.rollout, c.train)  # refuses wrong names before the model is opened
    checks.check_functions(c)
    model_config, tokenizer, weights = engine_lib.load(c.model, c.seed)
    check_templates(c.data, tokenizer)  # a wrong template would make every row of a file a bad one
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    encoder = PromptEncoder(c.data, tokenizer, sources.train.train, model_config.vocab_size)
    lessons = warmup.Lessons(c.warmup, c.seed, c.rollout.max_tokens, sources.warmup, encoder, tokenizer)
    checks.check_problems(c, sources, encoder, lessons)
    checks.check_length(c, model_config)
    checks.check_server(c.rollout, sources, encoder)
    engine = Engine.of(c, model_config, tokenizer, mesh)
    meta = {"config": metrics.config_hash(c.to_dict()), "data": sources.digests(), "slots": engine.sampler.widths}
    return Setup(c, engine, tokenizer, sources, encoder, lessons, weights, advantage_of, meta)


def check_directory(c: ConfigDict, workdir: str, checkpoints: Checkpoints, warmed: Checkpoints, force: bool) -> None:
    """Looks at what is in the run directory, before any work.

    Raises:
        ValueError: It holds another run, a run that has lost its checkpoints, or files in a checkpoint's place.
    """
    checkpoints.refuse_files()
    if checkpoints.steps() or warmed.steps():
        metrics.check_config(workdir, c.to_dict(), force=force)
    if not checkpoints.steps():
        metrics.refuse_lost_checkpoints(workdir, force)


def resume(c: ConfigDict, desk: Desk, state: TrainState, saved: dict[str, Any]) -> tuple[TrainState, int]:
    """(the state, the last step done) of a checkpoint; a row that the record lacks is written, with its evaluation."""
    step = int(saved["step"])
    desk.keeper.found(step)
    logging.info("resumed from step %d", step)
    last_row = distributed.collect(desk.log.last_step)[0]  # the first process's: it has the record
    if last_row < step:
        if "row" not in saved or last_row < step - 1:
            logging.warning("metrics.jsonl has no rows of steps %d to %d: they are lost", last_row + 1, step - 1)
        if "row" in saved:
            conclude(c, desk, state, saved["row"])
    if step >= c.train.steps:
        logging.info("finished already at step %d; raise train.steps (now %d) to continue", step, c.train.steps)
    return state, step


def begin(setup: Setup, desk: Desk, warmed: Checkpoints, force: bool, warm_up_of: str) -> tuple[TrainState, int]:
    """(the state before step 1, 0), after the warm-up, whose own state is removed once step 0 is saved."""
    c, engine, row = setup.c, setup.engine, Row(step=0)
    if c.warmup.updates:
        made = borrow(setup, warm_up_of) if warm_up_of else warm(setup, desk, warmed, force)
        params, row["warmup/loss"] = made
        state = engine.init(params)
        desk.keeper.reached(0, state, row=row)
        desk.keeper.save()
        warmed.clear()
    else:
        desk.stop.now("reading the model")
        state = engine.init(setup.weights(engine.params_sharding))
    row = conclude(c, desk, state, row)
    logging.info("step 0  %s", accuracy_text(row))
    return state, 0


def warm(setup: Setup, desk: Desk, warmed: Checkpoints, force: bool) -> tuple[Params, float]:
    """(the parameters, the mean loss at the end) of the warm-up, which is resumed if it was interrupted.

    Raises:
        ValueError: It was begun with other data, and `force` is not set.
    """
    c = setup.c
    taught = warmup.engine_of(c, setup.engine.model_config, setup.tokenizer, setup.engine.mesh)
    keeper: Keeper[TrainState] = Keeper(warmed, setup.meta, desk.lock, desk.stop, "update {} of the warm-up")
    if (found := warmed.restore(taught.abstract_state)) is not None:
        state, saved = found
        checks.check_data(saved["data"], setup.meta["data"], force)
        begun = warmup.Progress(state, int(saved["step"]), saved["losses"])
        keeper.found(begun.done)
        logging.info("the warm-up is resumed after update %d", begun.done)
    else:
        desk.stop.now("reading the model")
        with taught.on_mesh():
            begun = warmup.Progress(taught.init(setup.weights(taught.params_sharding)), 0, [])
    every = c.checkpoint.warmup_every
    return warmup.run(c.warmup, c.optim.max_skipped, taught, begun, setup.lessons, keeper, every)


def check_same_warm_up(c: ConfigDict, warm_up_of: str) -> None:
    """Refuses another run's warm-up unless this one's would end with the same parameters.

    Raises:
        ValueError: The other run has no warm-up, or another one; names the settings that differ.
    """
    own, other = (warmup.settings_of(x) for x in (c.to_dict(), metrics.read_config(warm_up_of)))
    if not c.warmup.updates:
        raise ValueError(f"--warm_up_of={warm_up_of}: this run has no warm-up (warmup.updates=0)")
    if differ := [key for key in own if own[key] != other[key]]:
        raise ValueError(f"--warm_up_of={warm_up_of}: that run's warm-up is another one, by {', '.join(differ)}")


def borrow(setup: Setup, warm_up_of: str) -> tuple[Params, float]:
    """(the parameters, the mean loss at the end) of the warm-up that another run has made.

    Raises:
        ValueError: The other run has not finished its warm-up, or was made from other data.
    """
    wanted = {"params": setup.engine.abstract_state.params}
    checkpoints = Checkpoints(epath.Path(warm_up_of) / "checkpoints")
    if 0 not in checkpoints.steps():
        raise ValueError(f"--warm_up_of={warm_up_of}: it has no checkpoint of step 0, the end of its warm-up")
    found = checkpoints.restore(wanted, step=0, partial=True)
    assert found is not None
    checks.check_data(found[1]["data"], setup.meta["data"], force=False)
    return found[0]["params"], found[1]["row"]["warmup/loss"]


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
