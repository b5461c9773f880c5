"""The lock of a run directory: refused, taken over, lost, released; in a bucket too, and among real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_jsonl import RUN, bucket  # noqa: F401

from entropy_rl.record.lock import Lock

pytestmark = pytest.mark.timeout(120)  # a test that waits for what does not come

ENV = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
HOLD = """
import sys, time
from entropy_rl.record.lock import Lock
with Lock(sys.argv[1]) as held:
    held.confirm()
    print("held", flush=True)
    time.sleep(600)
"""


def of_another(path, **more):
    """The lock of a run on another machine."""
    there = {"host": "far", "machine": "m", "pid": 7, "born": "1", "token": "t", "time": time.time()} | more
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(there))
    return there


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=ENV) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_live_run_is_named_and_a_killed_one_is_followed_at_once(tmp_path, holder):
    with pytest.raises(ValueError, match=rf"in use by another run, process {holder.pid} on \S+, whose last heartbeat"):
        Lock(tmp_path).__enter__()
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, which holds nothing
    with Lock(tmp_path) as mine:
        mine.confirm()
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_was_given_again_holds_nothing(tmp_path):
    with Lock(tmp_path):
        mine = json.loads((tmp_path / "lock.json").read_text())
        with pytest.raises(ValueError, match="in use by another run"):
            Lock(tmp_path).__enter__()
    (tmp_path / "lock.json").write_text(json.dumps(mine | {"born": "1"}))
    with Lock(tmp_path) as again:
        again.confirm()


def test_another_machines_lock_without_heartbeat_is_taken_over(tmp_path, caplog):
    of_another(tmp_path / "lock.json", time=time.time() - 100)
    with Lock(tmp_path) as mine:
        mine.confirm()
    assert "no heartbeat of process 7 on far, whose last heartbeat was 100 s ago, taken over" in caplog.text


def test_a_young_lock_of_another_machine_is_watched_until_it_is_stale(tmp_path, caplog):
    of_another(tmp_path / "lock.json", time=time.time() + 3600)  # its clock is an hour ahead
    with Lock(tmp_path, beat=0.05, stale=0.3) as mine:
        mine.confirm()
    assert "held by process 7 on far" in caplog.text and "taken over" in caplog.text


def test_a_heart_that_beats_on_another_machine_is_refused(tmp_path):
    there = of_another(tmp_path / "lock.json")
    with Lock(tmp_path / "other", beat=0.05) as far:  # a real heart, made to beat at that lock
        far._path, far._own = far._workdir / "../lock.json", there | {"token": "t"}
        with pytest.raises(ValueError, match="in use by another run, process 7 on far"):
            Lock(tmp_path, beat=0.05, stale=20).__enter__()


def test_a_run_that_lost_its_lock_stops_and_leaves_the_others(tmp_path):
    with Lock(tmp_path, beat=0.05) as mine:
        mine.check()
        there = of_another(tmp_path / "lock.json")
        with pytest.raises(RuntimeError, match=r"process 7 on far, .*has taken this directory over; this run stops"):
            mine.check()
        time.sleep(0.3)  # some beats: none of them takes the lock back
        assert json.loads((tmp_path / "lock.json").read_text()) == there
    assert json.loads((tmp_path / "lock.json").read_text()) == there


def test_of_two_that_start_together_the_one_whose_token_was_overwritten_leaves(tmp_path):
    with Lock(tmp_path) as first:
        of_another(tmp_path / "lock.json")
        with pytest.raises(ValueError, match="in use by another run, process 7"):
            first.confirm()


def test_a_heartbeat_and_a_lock_that_was_removed(tmp_path):
    path = tmp_path / "lock.json"
    with Lock(tmp_path, beat=0.05) as mine:
        before = json.loads(path.read_text())["time"]
        path.unlink()
        while not path.exists() or json.loads(path.read_text())["time"] == before:
            time.sleep(0.01)
        mine.check()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"host": 1, "machine": 2, "pid": "3"}'])
def test_what_no_run_wrote_is_no_lock(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with Lock(tmp_path) as mine:
        mine.confirm()


def test_a_directory_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="--workdir=/proc cannot be written: "):
        Lock("/proc").__enter__()


def test_in_a_bucket(bucket):  # noqa: F811
    with Lock(RUN) as mine:
        mine.confirm()
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on"):
            Lock(RUN).__enter__()
        mine.check()
    assert not (bucket.here(RUN) and os.path.exists(os.path.join(bucket.here(RUN), "lock.json")))
