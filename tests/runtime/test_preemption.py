"""SIGTERM and Ctrl-C, sent for real to processes that import nothing but the standard library, and to this one."""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from entropy_rl.runtime import preemption
from entropy_rl.runtime.preemption import Stop, Stopped

pytestmark = pytest.mark.timeout(120)  # a test that waits for what does not come
ROOT = Path(__file__).parents[2]
PRELUDE = """
import sys, time
from entropy_rl.runtime.preemption import STOP
assert "jax" not in sys.modules
STOP.install()
def hang():  # as in a compilation: the main thread does not come back to Python
    import hashlib
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes without a look at signals
"""


def started(script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PRELUDE + script, *arguments]
    # the tests themselves may have been started with SIGINT ignored, as a shell's background job is
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize("sent, code, name", [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_busy_process_with_nothing_to_save_ends_by_itself(sent, code, name):
    process = started("STOP.at_end(lambda: print('released', file=sys.stderr, flush=True)); hang()")
    process.send_signal(sent)
    line = f"{name}: stopped in start-up; nothing is lost; the same command continues\nreleased\n"
    assert ended(process) == (code, line)


def test_a_busy_process_that_saved_says_what_is_lost():
    process = started(
        "STOP.unsaved(); STOP.saved('step 11 is saved'); STOP.now(\"step 12's rollout\", 'again'); hang()"
    )
    process.send_signal(signal.SIGTERM)
    line = "SIGTERM: stopped in step 12's rollout; step 11 is saved; again; the same command continues\n"
    assert ended(process) == (75, line)


SAVES = """
STOP.unsaved(); STOP.now("step 12's updates")
print("ready", flush=True)
until = time.monotonic() + 2
while not STOP.requested or time.monotonic() < until:
    time.sleep(0.05)
STOP.saved("step 12 is saved")
STOP.leave()
STOP.look()
"""


def test_a_process_that_holds_work_is_left_to_save_it():
    process = started(SAVES)
    process.send_signal(signal.SIGINT)
    waits = "Ctrl-C: in step 12's updates, will save as soon as it can; another Ctrl-C ends it at once, unsaved\n"
    assert ended(process) == (
        130,
        waits + "Ctrl-C: stopped in step 12's updates; step 12 is saved; the same command continues\n",
    )


def test_a_second_ctrl_c_ends_at_once():
    process = started('STOP.unsaved(); STOP.now("step 12\'s updates"); hang()')
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # a terminal's and a launcher's copy of one Ctrl-C
    assert "will save as soon as it can" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "Ctrl-C again: ended in step 12's updates, and nothing more is saved\n")


def test_a_shells_background_job_ignores_ctrl_c():
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);" + PRELUDE
    command = [sys.executable, "-c", script + "hang()"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75


def test_in_a_notebook_a_stop_is_raised_and_the_handlers_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    stop = Stop()
    for sent, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with stop.handled():
            stop.look()
            with stop.handled():  # the inner one is the outer one
                os.kill(os.getpid(), sent)
            with pytest.raises(Stopped) as caught:
                stop.look()
            assert caught.value.code == code
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
        stop.look()  # forgotten


def test_in_a_notebook_a_second_ctrl_c_interrupts():
    with Stop().handled():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_wait_for_what_never_comes_can_be_stopped():
    with preemption.STOP.handled() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="75"):
            stop.wait(Future())
    done = Future()
    done.set_result(3)
    assert preemption.wait(done) == 3


def test_the_command_can_be_stopped_before_it_has_imported_jax(tmp_path):
    """The first line that python -v prints about absl comes after the handlers are set and before JAX."""
    command = [sys.executable, "-v", "-m", "entropy_rl.train", "--config=configs/quickstart.py"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path}/run"], stderr=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
    )
    for line in process.stderr:
        assert "import 'jax'" not in line
        if "import 'absl'" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, err = ended(process)
    assert code == 75 and "SIGTERM: stopped in start-up; nothing is lost" in err
    assert not (tmp_path / "run").exists()
