"""Rows 11 to 16: a run that was stopped and resumed is the run that was not, and another run is refused."""

import collections
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from states import assert_bitwise

from entropy_rl import loop
from entropy_rl.record import jsonl
from entropy_rl.record.checkpoint import Checkpoints

STEPS = 10


def signalled(point: str, count: int, number: str) -> tuple[str, ...]:
    return str(small_runs.ROOT / "tests/signal_at.py"), point, str(count), number


@pytest.mark.slow
def test_11_killed_and_resumed_is_the_run_that_nothing_stopped(whole, cache, tmp_path):
    """Ten steps against 4 + SIGKILL + 6: parameters, moments, token state, rows with rewards, prompts, responses."""
    run = tmp_path / "run"
    small_runs.finish(run, cache, program=signalled("rollout", 6, "SIGKILL"), code=-signal.SIGKILL)
    assert Checkpoints(run / "checkpoints").latest() == 4 and small_runs.rows(run)[-1]["step"] == 5
    small_runs.finish(run, cache)
    assert not small_runs.differences(whole, run, STEPS)


def lost(name: str):
    """A restore that loses one part of the state: zeros are what it was before the first step."""

    def change(state, meta):
        return state._replace(**{name: jax.tree.map(jnp.zeros_like, getattr(state, name))}), meta

    return change


LOSSES = {
    "step": lambda state, meta: (state, meta | {"step": meta["step"] - 2}),
    "params": lost("params"),
    "optimiser": lost("opt_state"),
    "token state": lost("token_state"),
}


def resume(workdir):
    c = small_runs.get_config()
    c.train.steps = STEPS
    loop.run(c, str(workdir))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("loss", LOSSES)
def test_12_a_restore_that_loses_something_is_seen(whole, stopped, monkeypatch, loss):
    """Row 11 compares enough: whichever part is not restored, the resumed run is another."""
    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", lambda *args, **kw: LOSSES[loss](*restore(*args, **kw)))
    resume(stopped)
    assert small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_12_the_comparison_finds_nothing_if_nothing_was_lost(whole, stopped):
    resume(stopped)
    assert not small_runs.differences(whole, stopped, STEPS)
    state = small_runs.leaves(stopped, STEPS)
    coefficient = next(data for name, data in state.items() if "token_state" in name and "coef/" in name)
    assert np.frombuffer(coefficient, np.float32).any()  # a state of zeros would hide a restore that lost it


def one_problem(folder):
    """One question at every step, and a policy that does not move: only the key can change a response."""
    (folder / "one.jsonl").write_text('{"question": "3 + 4 =", "answer": "7"}\n')
    c = small_runs.get_config("file")
    c.data.task, c.optim.lr = str(folder / "one.jsonl"), 1e-30
    c.rollout.prompts, c.rollout.slots, c.train.updates_per_rollout = 1, 4, 1
    c.train.steps, c.checkpoint.every, c.log.samples = 3, 1, 32
    return c


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_13_the_key_of_the_sampler_moves_with_the_step(tmp_path):
    c = one_problem(tmp_path)
    loop.run(c, str(tmp_path / "whole"))
    c.train.steps = 1
    loop.run(c, str(tmp_path / "cut"))
    c.train.steps = 3
    loop.run(c, str(tmp_path / "cut"))
    assert not small_runs.differences(tmp_path / "whole", tmp_path / "cut", 3)
    responses = collections.defaultdict(list)
    for sample in jsonl.read(tmp_path / "cut/samples.jsonl"):
        responses[sample["step"]].append(sample["response"])
    assert responses[1] != responses[2] != responses[3] != responses[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, r"seed: 0 in the run, 1 now"),
        ({"rollout.prompts": 16}, r"rollout\.prompts: 8 in the run, 16 now"),
        ({"data.settings.max_digits": 2}, r"data\.settings\.max_digits: 1 in the run, 2 now"),
    ],
)
def test_14_another_configuration_is_refused_with_a_diff(whole, tmp_path, change, message):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    c = small_runs.get_config()
    c.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        loop.run(c, str(run))
    assert not small_runs.differences(whole, run, STEPS)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_14_another_configuration_is_resumed_if_it_is_forced(whole, stopped):
    c = small_runs.get_config()
    c.optim.lr = 2e-3
    loop.run(c, str(stopped), force=True)
    assert small_runs.rows(stopped)[:9] == small_runs.rows(whole)[:9]
    assert small_runs.rows(stopped)[-1]["step"] == STEPS and small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
def test_15_each_problem_once_per_epoch_however_often_the_run_is_killed(cache, tmp_path):
    """16 problems, 8 per step, 3 epochs; killed during the last batch of the first two."""
    lines = [json.dumps({"question": f"{i} + {j} =", "answer": str(i + j)}) for i in range(4) for j in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    flags = [
        f"--config={small_runs.__file__}:file",
        f"--config.data.task={tmp_path / 'sums.jsonl'}",
        "--config.train.steps=6",
        "--config.checkpoint.every=1",
        "--config.log.samples=32",
    ]
    for rollout in (2, 3):  # of that process: steps 2 and 4
        small_runs.finish(run, cache, *flags, program=signalled("step", rollout, "SIGKILL"), code=-signal.SIGKILL)
    small_runs.finish(run, cache, *flags)
    asked = collections.defaultdict(list)
    for sample in jsonl.read(run / "samples.jsonl"):
        asked[sample["step"]].append(sample["question"])
    for epoch in range(3):
        seen = collections.Counter(asked[2 * epoch + 1] + asked[2 * epoch + 2])
        assert len(seen) == 16 and set(seen.values()) == {4}  # G responses to each


def test_16_a_state_restores_on_another_mesh(tmp_path):
    """Saved on 1 device, restored and saved on 8, restored on 4: the same bits, the same loss."""
    x_BxD = jax.random.normal(jax.random.key(1), (8, 16))
    loss = jax.jit(lambda params, x: jnp.mean(jnp.tanh(x @ params["w"] + params["b"][None, :]) ** 2))
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8)), "b": jnp.arange(8.0)}
    expected = float(loss(params, x_BxD))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, params, {})
    for step, shape in ((2, (4, 2)), (3, (2, 2))):
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        assert devices.size in (8, 4)
        mesh = Mesh(devices, ("fsdp", "tensor"))
        shardings = {"w": NamedSharding(mesh, P("fsdp", "tensor")), "b": NamedSharding(mesh, P("tensor"))}
        abstract = {n: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=shardings[n]) for n, p in params.items()}
        restored, _ = checkpoints.restore(abstract)
        assert restored["w"].sharding == shardings["w"]
        assert restored["w"].addressable_shards[0].data.shape == (16 // shape[0], 4)
        assert_bitwise(restored, params)
        assert float(loss(restored, x_BxD)) == pytest.approx(expected, rel=1e-6)
        checkpoints.save(step, restored, {})
