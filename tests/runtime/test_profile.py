"""The profiler traces the steps that it is asked for, and stops however the run ends; test_loop.py makes a trace."""

import jax
import pytest

from entropy_rl.runtime.profile import Profiler


@pytest.fixture
def calls(monkeypatch):
    """What is called of JAX's profiler, in order."""
    found = []

    def start(folder):
        found.append(f"start {folder}")

    def stop():
        found.append("stop")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    return found


def test_the_steps_from_the_first_on_are_traced(calls, tmp_path):
    with Profiler(str(tmp_path), 3, 2) as profiler:
        for step in range(1, 8):
            profiler.at(step)
            calls.append(step)
    assert calls == [1, 2, f"start {tmp_path}/profile", 3, 4, "stop", 5, 6, 7]


def test_no_steps_are_traced_if_none_are_asked_for(calls, tmp_path):
    with Profiler(str(tmp_path), 3, 0) as profiler:
        for step in range(1, 5):
            profiler.at(step)
    assert calls == []


def test_a_run_that_ends_within_the_trace_stops_it(calls, tmp_path):
    with Profiler(str(tmp_path), 3, 10) as profiler:
        profiler.at(3)
        assert len(calls) == 1
    assert calls[1:] == ["stop"]
    with pytest.raises(SystemExit), Profiler(str(tmp_path), 3, 10) as profiler:
        profiler.at(3)
        raise SystemExit(75)
    assert calls[3:] == ["stop"]
