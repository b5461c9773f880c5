"""The panel on a real terminal, as its screen shows it, and what a run shows without one."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pyte
import pytest
import small_runs

from entropy_rl.record.panel import View, curve, drawn, fits, plain

ROOT = pathlib.Path(__file__).parents[2]
WIDTH, LIMIT = 300, 60  # columns, seconds

# A run's record as the loop writes it, in a process whose stderr is the terminal; `HERE` is what happens in the end.
PROGRAM = """
import os, signal, sys
from absl import app, flags, logging
from entropy_rl import config
from entropy_rl.record.metrics import RunLog
from entropy_rl.record.show import Show

STDERR = sys.stderr

def main(argv):
    logging.set_verbosity(logging.INFO)
    c = config.default()
    c.train.steps = 60
    try:
        with Show(c, argv[1]) as show:
            log = RunLog(argv[1], None)
            show.follow(log)
            show.row(log.write({"step": 0}))
            show.starts(0)
            for step in range(1, 31):
                log.sample([{"step": step, "question": "2+2", "response": "\\x1b[2J4 [bold]\\n", "reward": 1.0}])
                row = {"reward/mean": step / 60, "entropy/mean": 1 / step, "law/ceiling": 0.83}
                row |= {"eval/sums/accuracy": 0.5, "eval/sums/low": 0.4, "eval/sums/high": 0.6} if step == 20 else {}
                show.row(log.write({"step": step, "throughput/rollout_tokens_per_s": 1234.6, **row,
                                    "tokens/kept_frac": float(step < 25)}))
            print("from print", file=sys.stderr)
            HERE
    except ValueError as error:
        logging.info("caught %s", error)
    logging.info("after the panel, the log as it was: %s", logging.get_absl_handler().python_handler.stream is STDERR)

app.run(main)
"""


def on_screen(command, env, limit, stop_at=None):
    """(the screen's lines, whether the cursor is visible, the exit code, all bytes) of a command in a terminal.

    With `stop_at` it gets a SIGTERM once it has written these bytes.
    """
    screen = pyte.HistoryScreen(WIDTH, 60)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    env = env | {"COLUMNS": f"{WIDTH}", "LINES": "60"}
    raw, until = b"", time.monotonic() + limit
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=slave, env=env) as process:
        os.close(slave)
        try:
            while time.monotonic() < until:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
                raw += data
                stream.feed(data)
                if stop_at is not None and stop_at in raw:
                    process.terminate()
                    stop_at = None
            code = process.wait(limit)
        finally:
            process.kill()
            os.close(master)
    lines = ["".join(line[i].data for i in range(WIDTH)).rstrip() for line in screen.history.top]
    return [*lines, *(line.rstrip() for line in screen.display)], not screen.cursor.hidden, code, raw


def run(here, workdir, env=()):
    """`on_screen` of the program."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-c", PROGRAM.replace("HERE", here), str(workdir)]
    return on_screen(command, os.environ | {"TERM": "xterm", "PYTHONPATH": path} | dict(env), LIMIT)


def the_panel(lines):
    """The lines of the only panel on the screen, without its frame."""
    (top,) = (i for i, line in enumerate(lines) if line.startswith("╭"))
    (bottom,) = (i for i, line in enumerate(lines) if line.startswith("╰"))
    return top, bottom, [lines[top], *(" ".join(line.strip("│").split()) for line in lines[top + 1 : bottom])]


def test_the_panel_is_below_the_lines_of_the_log(tmp_path):
    lines, cursor, code, raw = run("pass", tmp_path)
    assert code == 0 and cursor
    top, bottom, panel = the_panel(lines)
    steps = [line for line in lines[:top] if "] step " in line and "/60" in line]
    assert len(steps) == 30 and "step 30/60  reward 0.500  entropy 0.033  1235" in steps[-1]
    assert any("from print" in line for line in lines[:top])
    assert any("step 25: alarm empty_mask: tokens/kept_frac is 0. Look at" in line for line in lines[:top])
    assert "after the panel, the log as it was: True" in lines[bottom + 1]
    assert panel[0].startswith("╭─ step 30/60 ─")
    assert panel[1].startswith("reward 0.500 forecast ceiling 0.830 ▁") and panel[1].endswith("█")
    assert panel[2].startswith("entropy 0.033 nats 5% of the start") and "█▄▃" in panel[2]
    assert panel[3].startswith("held out sums 50.0% [40.0, 60.0] at step 20")
    assert panel[4].startswith("speed 1235 tokens/s") and panel[4].endswith("left")
    assert panel[5:] == ["since step 25 alarm empty_mask: tokens/kept_frac is 0", "2+2", "→ �[2J4 [bold]⏎ (reward 1)"]


@pytest.mark.parametrize(
    "here, code, then",
    [
        ("raise ValueError('an error')", 0, "caught an error"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os._exit(75)", 75, ""),
    ],
)
def test_the_terminal_is_as_it_was_whatever_ends_the_run(tmp_path, here, code, then):
    lines, cursor, returned, raw = run(here, tmp_path)
    assert returned == code and cursor and raw.rfind(b"\x1b[?25h") > raw.rfind(b"\x1b[?25l")
    _, bottom, panel = the_panel(lines)
    assert "step 30/60" in panel[0] and then in lines[bottom + 1] and b"\x1b[?1049h" not in raw


@pytest.mark.slow
def test_a_stopped_run_has_its_last_line_below_the_panel(tmp_path):
    options = [f"--config={small_runs.__file__}:grpo", f"--workdir={tmp_path / 'run'}", "--config.train.steps=400"]
    options += ["--config.warmup.updates=0", "--config.eval.every=0"]
    env = small_runs.environment(tmp_path / "cache") | {"TERM": "xterm"}
    command = [sys.executable, *small_runs.COMMAND, *options]
    lines, cursor, code, raw = on_screen(command, env, small_runs.LIMIT, stop_at=b"step 3/400")
    top, bottom, panel = the_panel(lines)
    assert code == 75 and cursor and b"\x1b[?1049h" not in raw
    assert panel[0].startswith("╭─ step 3/400 ─") and panel[-1].startswith("→ ")
    assert "step 3/400  reward" in "".join(lines[:top]) and lines[bottom + 1].startswith("SIGTERM: stopped in ")


def test_a_panel_that_fails_leaves_the_lines(tmp_path):
    broken = "from entropy_rl.record import panel; panel.drawn = None; show.row(log.write({'step': 31})); "
    lines, cursor, code, raw = run(broken + "show.row(log.write({'step': 32}))", tmp_path)
    text = "\n".join(lines)
    assert code == 0 and cursor and text.count("the panel failed and is left out (TypeError") == 1
    assert "step 31/60" in text and "step 32/60" in text and "after the panel" in text


def test_a_terminal_that_cannot_show_it_gets_lines(tmp_path):
    for env in ({"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}):
        lines, _, code, raw = run("pass", tmp_path / "".join(env), env)
        assert code == 0 and b"\x1b" not in raw and not any("╭" in line for line in lines)
        assert any("step 30/60  reward 0.500" in line for line in lines)


def test_a_file_gets_no_panel(tmp_path):
    with (tmp_path / "log").open("w") as file:
        assert not fits(file)


def test_a_panel_needs_nothing_but_a_row():
    assert drawn(View([{"step": 1}], 3)).title == "step 1/3"
    empty = {"step": 1, "reward/mean": None, "entropy/mean": None, "throughput/rollout_tokens_per_s": None}
    sample = {"question": "q", "response": "r\ud800", "reward": None}
    assert drawn(View([empty, {"step": 2, "entropy/mean": 0.0}], 3, 5.0, (), sample)) is not None


def test_a_curve_has_a_width_and_text_is_one_line():
    assert len(curve([float(i) for i in range(1000)])) == 32 and curve([None, None]) == ""
    assert plain("a" * 1000) == "a" * 300 + "…" and plain("a\r\nb\u2028c\0d") == "a⏎b�c�d"
