"""Row 27: a record whose last line was torn by a kill."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from entropy_rl.record import jsonl
from entropy_rl.record.metrics import RunLog


def written(workdir: Path, steps: range) -> Path:
    log = RunLog(workdir, resume_step=None)
    for step in steps:
        log.write({"step": step, "reward/mean": step / 7})
    return workdir / "metrics.jsonl"


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in jsonl.read(path)]


def test_27_a_line_torn_at_any_byte_is_dropped_and_logged(tmp_path, caplog):
    path = written(tmp_path, range(1, 4))
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in [*range(1, last, 37), last - 1]:
        path.write_bytes(whole[:-cut])
        caplog.clear()
        assert steps_in(path) == [1, 2]
        assert "metrics.jsonl, line 3: torn" in caplog.text
        assert caplog.records[0].levelno == logging.WARNING
    RunLog(tmp_path, resume_step=3).write({"step": 3})
    assert steps_in(path) == [1, 2, 3]


KILLED_IN_APPEND = """
import sys
from entropy_rl.record.metrics import RunLog
log = RunLog(sys.argv[1], None)
text = "x" * (1 << 26)
for step in range(1, 1000):
    log.write({"step": step, "reward/mean": step / 7})
    print(step, flush=True)
    log.sample([{"step": step, "text": text}])
"""


def test_27_sigkill_during_an_append(tmp_path):
    command = [sys.executable, "-c", KILLED_IN_APPEND, str(tmp_path)]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        for _ in range(2):
            assert process.stdout.readline()
        time.sleep(0.1)  # most likely during the 64 MB write
        process.kill()
    steps = steps_in(tmp_path / "metrics.jsonl")
    assert steps == list(range(1, len(steps) + 1))
    samples = [row["step"] for row in jsonl.read(tmp_path / "samples.jsonl")]
    assert samples in (steps, steps[:-1])
    RunLog(tmp_path, resume_step=1).write({"step": 2})
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2]
    assert steps_in(tmp_path / "samples.jsonl") == [1]
