"""Trackers get what metrics.jsonl has, continue with their run, and never stop it."""

import json
import struct

import pytest
from etils import epath
from test_loop import tiny

from entropy_rl import config, loop
from entropy_rl.record import jsonl, show, trackers
from entropy_rl.record.metrics import RunLog
from entropy_rl.record.show import Show
from entropy_rl.record.trackers import TRACKERS, Trackers, check, run_name

pytestmark = pytest.mark.usefixtures("compiled_once")


def events(folder):
    """The events of each file of TensorBoard's, in the order in which the files were begun."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at, found = path.read_bytes(), 0, []
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
        yield found


def values(found):
    return {(e.step, v.tag): v.simple_value for e in found for v in e.summary.value}


def row_of(step):
    return {"reward/mean": step / 7, "grad/skipped": 0.0}


class Broken:
    """A tracker that raises where it is told to, and otherwise keeps what it gets."""

    got = []

    def __init__(self, place, at):
        self.at = at
        if at == "open":
            raise OSError("no network")

    def row(self, step, values):
        if self.at == "row" and step == 2:
            raise RuntimeError("the server is gone")
        Broken.got.append((step, values))

    def close(self):
        if self.at == "close":
            raise ValueError("not sent")


@pytest.fixture
def broken(monkeypatch):
    for at in ("open", "row", "close", "never"):
        monkeypatch.setitem(TRACKERS, at, (lambda place, at=at: Broken(place, at), "json", "json"))
    monkeypatch.setattr(Broken, "got", [])


def test_tensorboard_has_every_number_that_was_measured(tmp_path):
    c = config.default()
    c.log.trackers = ("tensorboard",)
    for resumed, steps in ((None, (0, 1, 2)), (1, (2, 3))):
        with Show(c, str(tmp_path)) as shown:
            log = RunLog(tmp_path, resumed)
            shown.follow(log)
            for step in steps:
                shown.row(log.write({"step": step, "reward/mean": step / 7, "eval/a/low": None, "grad/skipped": 0}))
    first, second = events(tmp_path / "tensorboard")
    assert values(first) == pytest.approx({(s, k): v for s in (0, 1, 2) for k, v in row_of(s).items()})
    assert values(second) == pytest.approx({(s, k): v for s in (2, 3) for k, v in row_of(s).items()})
    assert [e.step for e in second if e.HasField("session_log")] == [2]  # hides what came after the checkpoint


@pytest.mark.slow
def test_tensorboard_has_the_rows_of_a_run_and_of_its_continuation(tmp_path):
    c = tiny("grpo", **{"train.steps": 2, "eval.every": 0, "warmup.updates": 0, "log.trackers": ("tensorboard",)})
    loop.run(c, str(tmp_path))
    name = json.loads((tmp_path / "trackers.json").read_text())["name"]
    c.train.steps = 3
    loop.run(c, str(tmp_path))
    rows = jsonl.read(tmp_path / "metrics.jsonl")
    first, second = events(tmp_path / "tensorboard")
    wanted = {(r["step"], k): v for r in rows for k, v in r.items() if v is not None and k not in ("step", "time")}
    assert len(wanted) > 60 and values([*first, *second]) == pytest.approx(wanted, rel=1e-6)
    assert [e.step for e in second if e.HasField("session_log")] == [3]  # hides what may have come after the checkpoint
    assert {step for step, _ in values(second)} == {3}
    assert name.startswith(tmp_path.name) and json.loads((tmp_path / "trackers.json").read_text())["name"] == name


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, broken, caplog):
    made = Trackers(["open", "row", "close", "never"], epath.Path(tmp_path), -1, {})
    for step in (1, 2, 3):
        made.row({"step": step, "time": 5.0, "reward/mean": 0.5, "grad/skipped": 0, "law/a": None})
    made.close()
    warned = [record.message for record in caplog.records]
    assert warned == [
        "log.trackers: open failed and is left out (OSError: no network)",
        "log.trackers: row failed and is left out (RuntimeError: the server is gone)",
        "log.trackers: close failed and is left out (ValueError: not sent)",
    ]
    sent = {"reward/mean": 0.5, "grad/skipped": 0.0}
    assert sorted(step for step, _ in Broken.got) == [1, 1, 1, 2, 2, 3, 3] and Broken.got[0] == (1, sent)


def test_a_name_that_cannot_be_written_does_not_stop_a_run(tmp_path, broken, caplog):
    (tmp_path / "trackers.json").mkdir()
    Trackers(["never"], epath.Path(tmp_path), -1, {}).row({"step": 1, "reward/mean": 0.5})
    assert "log.trackers: trackers.json failed and is left out" in caplog.text and not Broken.got


def test_a_run_closes_its_trackers_whatever_ends_it(tmp_path, broken, caplog):
    c = config.default()
    c.log.trackers = ("close",)
    with pytest.raises(KeyError, match="as it is"), Show(c, str(tmp_path)) as shown:
        shown.follow(RunLog(tmp_path, None))
        raise KeyError("as it is")
    assert "close failed and is left out" in caplog.text


def test_only_the_first_process_sends_and_warns(tmp_path, broken, monkeypatch, caplog):
    c = config.default()
    c.log.trackers = ("never",)
    for first in (False, True):
        monkeypatch.setattr(show.distributed, "first", lambda first=first: first)
        with Show(c, str(tmp_path)) as shown:
            log = RunLog(tmp_path, None)
            shown.follow(log)
            shown.row(log.write({"step": 1, "reward/mean": 0.5, "tokens/kept_frac": 0.0}))
        assert caplog.text.count("alarm empty_mask") == first
        assert len(Broken.got) == first and (tmp_path / "trackers.json").exists() == first


def test_what_cannot_be_used_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="log.trackers='mlflow' is no tracker; choose among tensorboard, trackio"):
        loop.run(tiny(**{"log.trackers": ("mlflow",), "model.source": "/nowhere"}), str(tmp_path))
    monkeypatch.setitem(TRACKERS, "wandb", (trackers._Wandb, "no_such_module", "wandb"))
    with pytest.raises(ValueError, match="log.trackers: wandb needs wandb: pip install wandb, or leave it out"):
        check(["tensorboard", "wandb"])


def test_a_run_has_one_name_until_it_starts_from_nothing(tmp_path):
    workdir = epath.Path(tmp_path)
    name = run_name(workdir, new=True)
    assert run_name(workdir, new=False) == name
    assert run_name(workdir, new=True) != name
    (tmp_path / "trackers.json").write_text("[]")
    assert run_name(workdir, new=False).startswith(tmp_path.name)


def test_the_alarms_of_a_resumed_run_are_not_named_again(tmp_path, caplog):
    c, rows = config.default(), [{"step": step, "tokens/kept_frac": 0.0} for step in range(1, 7)]
    caplog.set_level("INFO")
    for resumed, part in ((None, rows[:3]), (3, rows[3:])):
        with Show(c, str(tmp_path)) as shown:
            log = RunLog(tmp_path, resumed)
            shown.follow(log)
            for row in part:
                shown.row(log.write(row))
    assert caplog.text.count("step 1: alarm empty_mask: tokens/kept_frac is 0. Look at") == 1
    assert caplog.text.count("alarm") == 1 and caplog.text.count("reward -") == 6
