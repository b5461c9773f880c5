"""The clock, with a patched time: nothing here sleeps."""

import types

import pytest

from entropy_rl.runtime import clock as clock_lib
from entropy_rl.runtime.clock import Clock


class Time:
    """A monotonic time that passes only when a test moves it on."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    passing = Time()
    monkeypatch.setattr(clock_lib, "time", types.SimpleNamespace(monotonic=passing.monotonic))
    return passing


def test_each_part_is_summed_over_a_lap(time):
    clock = Clock()
    time.now += 1  # in no part
    for seconds in (2, 3):
        with clock("rollout"):
            time.now += seconds
    with clock("train"):
        time.now += 4
    assert clock.lap() == {"rollout": 5, "train": 4, "total": 10}


def test_a_lap_begins_where_the_last_one_ended(time):
    clock = Clock()
    with clock("rollout"):
        time.now += 2
    assert clock.lap() == {"rollout": 2, "total": 2}
    time.now += 3
    with clock("eval"):
        time.now += 1
    assert clock.lap() == {"eval": 1, "total": 4}
    assert clock.lap() == {"total": 0}


def test_a_part_that_fails_is_counted_and_the_error_passes_through(time):
    clock = Clock()
    with pytest.raises(OSError, match="no such device"), clock("reward"):
        time.now += 2
        raise OSError("no such device")
    assert clock.lap() == {"reward": 2, "total": 2}


def test_a_part_within_a_part_counts_in_both(time):
    clock = Clock()
    with clock("rollout"):
        time.now += 1
        with clock("reward"):
            time.now += 2
    assert clock.lap() == {"rollout": 3, "reward": 2, "total": 3}
