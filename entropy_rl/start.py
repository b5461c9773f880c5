"""A run up to its first step: its parts, its run directory, and the state that it starts or resumes from.

Everything that can be known to be wrong is refused here, before anything is compiled.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.data import PromptEncoder, Sources
from entropy_rl.data.prompts import check_templates
from entropy_rl.evaluation.in_training import Examiner
from entropy_rl.model.transformer import Params
from entropy_rl.objective import advantages
from entropy_rl.policy import config_of
from entropy_rl.record import metrics, trackers
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.hf_folders import HfFolders
from entropy_rl.record.keeper import Keeper
from entropy_rl.record.lock import Lock
from entropy_rl.record.rollouts import RolloutLog
from entropy_rl.record.show import Show
from entropy_rl.runtime import distributed
from entropy_rl.runtime.clock import Clock
from entropy_rl.runtime.preemption import Stop
from entropy_rl.training import checks, warmup
from entropy_rl.training import engine as engine_lib
from entropy_rl.training.batch import TrainState
from entropy_rl.training.engine import Engine
from entropy_rl.training.rows import Row, law_row

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
        rollouts: whole rollouts, with every token.
        keeper: checkpoints.
        lock: the run directory's.
        examiner: evaluates.
        clock: knows where the time went.
        show: shows the rows.
        stop: knows whether the run was asked to stop.
        folders: Hugging Face folders along the run.
    """

    log: metrics.RunLog
    rollouts: RolloutLog
    keeper: Keeper[TrainState]
    lock: Lock
    examiner: Examiner
    clock: Clock
    show: Show
    stop: Stop
    folders: HfFolders


def prepare(c: ConfigDict) -> Setup:
    """Opens data and model and checks that they fit together, before anything is compiled.

    Raises:
        ValueError: They do not; names the key, or the file and row.
    """
    mesh = engine_lib.mesh_of(c)
    advantage_of = advantages.build(config_lib.named(c.algo.advantage))
    engine_lib.method_of(c.algo, c.rollout, c.train)  # refuses wrong names before the model is opened
    checks.check_functions(c)
    trackers.check(c.log.trackers)
    model_config, tokenizer, weights = engine_lib.load(c.model, c.seed)
    check_templates(c.data, tokenizer)  # a wrong template would make every row of a file a bad one
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    encoder = PromptEncoder(c.data, tokenizer, sources.train.train, model_config.vocab_size)
    lessons = warmup.Lessons(c.warmup, c.seed, c.rollout.max_tokens, sources.warmup, encoder)
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


def check_same_warm_up(c: ConfigDict, warm_up_of: str) -> None:
    """Refuses another run's warm-up unless this one's would end with the same parameters.

    Raises:
        ValueError: The other run has no warm-up, or another one; names the settings that differ.
    """
    own, other = (warmup.settings_of(x.to_dict()) for x in (c, config_of(warm_up_of)))
    if not c.warmup.updates:
        raise ValueError(f"--warm_up_of={warm_up_of}: this run has no warm-up (warmup.updates=0)")
    if differ := [key for key in own if own[key] != other[key]]:
        raise ValueError(f"--warm_up_of={warm_up_of}: that run's warm-up is another one, by {', '.join(differ)}")


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
    desk.folders.resumed(step, state.params)
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
    else:
        desk.stop.now("reading the model")
        state = engine.init(setup.weights(engine.params_sharding))
    if c.warmup.updates or c.checkpoint.keep_every:
        desk.keeper.reached(0, state, row=row)
        desk.keeper.save()
        warmed.clear()
    conclude(c, desk, state, row)
    desk.folders.reached(0, state.params)
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


def conclude(c: ConfigDict, desk: Desk, state: TrainState, row: Row) -> None:
    """Makes the evaluation that a step ends with, if it is due, and writes and shows the step's row."""
    step = row["step"]
    if due(step, c.eval.every) or (c.eval.every and step == c.train.steps):
        desk.stop.now(f"step {step}'s evaluation", "the evaluation will be made again")
        row = row | desk.examiner.examine(state.params)
        row["time/eval_s"] = desk.clock.lap()["total"]
    desk.lock.check()
    desk.show.row(desk.log.write(row | (law_row([*desk.log.history(), row]) if step else {})))
    desk.stop.now(f"the end of step {step}")


def due(step: int, every: int) -> bool:
    """Whether a step is one of every `every`; 0: never."""
    return every > 0 and step % every == 0
