"""What a run keeps of itself when it is stopped: the newest boundary, once, and never under a lock that it has lost."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from test_lock import of_another

from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.keeper import Keeper
from entropy_rl.record.lock import Lock
from entropy_rl.runtime.preemption import Stop, Stopped


@pytest.fixture
def kept(tmp_path):
    """A keeper of a run directory whose lock it holds, its checkpoints, and what leaves once a signal has come."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with Stop().handled() as stop, Lock(tmp_path) as lock:
        lock.confirm()
        yield Keeper(checkpoints, {"config": "hash"}, lock, stop, "step {}"), checkpoints, stop


def state(value):
    return {"params": jnp.full(3, value)}


def stopped(keeper, stop, act):
    """SIGTERM after `act`, within the keeper's context."""
    with pytest.raises(Stopped), keeper.kept():
        act()
        os.kill(os.getpid(), signal.SIGTERM)
        stop.look()


def test_a_stop_saves_what_was_reached_last_and_only_that(kept):
    keeper, checkpoints, stop = kept

    def act():
        keeper.reached(1, state(1.0))
        keeper.reached(2, state(2.0), row={"step": 2})

    stopped(keeper, stop, act)
    assert checkpoints.steps() == [2]
    found, meta = checkpoints.restore(state(0.0))
    assert np.array_equal(found["params"], [2.0] * 3) and meta == {"config": "hash", "row": {"step": 2}, "step": 2}


def test_a_state_that_is_saved_or_about_to_be_donated_is_not_saved_again(kept):
    keeper, checkpoints, stop = kept
    keeper.reached(1, state(1.0))
    keeper.save()
    before = (checkpoints._folder(1) / "manifest.json").stat()
    given = state(2.0)

    def act():
        keeper.reached(2, given)
        keeper.spent()
        given["params"].delete()  # what donation does

    stopped(keeper, stop, act)
    assert checkpoints.steps() == [1] and (checkpoints._folder(1) / "manifest.json").stat() == before


def test_another_error_saves_nothing(kept):
    keeper, checkpoints, _ = kept
    with pytest.raises(RuntimeError, match="mine"), keeper.kept():
        keeper.reached(1, state(1.0))
        raise RuntimeError("mine")
    assert checkpoints.steps() == []


def test_nothing_is_saved_under_a_lock_that_was_lost(kept, tmp_path):
    keeper, checkpoints, _ = kept
    keeper.reached(1, state(1.0))
    there = of_another(tmp_path / "lock.json")
    with pytest.raises(RuntimeError, match="process 7 on far, .*has taken this directory over"):
        keeper.save()
    assert checkpoints.steps() == [] and json.loads((tmp_path / "lock.json").read_text()) == there
