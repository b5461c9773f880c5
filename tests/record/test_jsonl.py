"""A run's record in a bucket: a stand-in at gs:// addresses that refuses to append and to rename."""

import os

import pytest
from etils import epath
from etils.epath import backend, gpath

from entropy_rl.record import jsonl, metrics

RUN = "gs://bucket/runs/a"


class Bucket(type(backend.os_backend)):
    """A folder at the address of a bucket, without the operations that a bucket does not have."""

    def __init__(self, folder):
        self.folder, self.puts = str(folder), []

    def here(self, path) -> str:
        return os.path.join(self.folder, os.fspath(path).removeprefix("gs://"))

    def open(self, path, mode):
        if "a" in mode or "+" in mode:
            raise NotImplementedError(f"a bucket does not append: {path}")
        if "w" in mode:
            self.puts.append(os.path.basename(path))
        return super().open(self.here(path), mode)

    def glob(self, path):
        raise NotImplementedError

    def rename(self, path, dst):
        raise NotImplementedError(f"a bucket does not rename: {path}")

    replace = rename


def mapped(name):
    of = getattr(type(backend.os_backend), name)
    return lambda self, path, *args, **more: of(self, self.here(path), *args, **more)


for name in ("exists", "isdir", "listdir", "makedirs", "mkdir", "remove", "stat"):
    setattr(Bucket, name, mapped(name))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    found = Bucket(tmp_path)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", found)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    return found


def fill(log, steps):
    for step in steps:
        log.write({"step": step, "reward/mean": step / 7})
        log.sample([{"step": step, "response": "a\nb"}] * 2)


def steps(name):
    return [row["step"] for row in jsonl.read(f"{RUN}/{name}")]


def test_a_record_is_written_in_numbered_parts_each_of_them_once(bucket):
    log = metrics.RunLog(RUN, None)
    log.config({"seed": 0})
    fill(log, range(1, 12))
    assert steps("metrics.jsonl") == [*range(1, 12)]
    assert steps("samples.jsonl") == sorted([*range(1, 12)] * 2)
    assert "metrics.jsonl.000011" in bucket.puts and len(bucket.puts) == len(set(bucket.puts))
    assert [row["reward/mean"] for row in log.history()][:2] == [1 / 7, 2 / 7]
    assert metrics.check_config(RUN, {"seed": 0}) == []


def test_rows_after_the_checkpoint_are_written_again(bucket):
    fill(metrics.RunLog(RUN, None), range(1, 6))
    log = metrics.RunLog(RUN, 3)
    assert steps("metrics.jsonl") == [1, 2, 3] and steps("samples.jsonl") == [1, 1, 2, 2, 3, 3]
    fill(log, range(4, 7))
    assert steps("metrics.jsonl") == [*range(1, 7)]
    with pytest.raises(ValueError, match="expected an int above 6"):
        log.write({"step": 6})
    assert jsonl.read(f"{RUN}/metrics.jsonl")[-1]["reward/mean"] == 6 / 7
    metrics.RunLog(RUN, None)  # starts afresh: the old record is set aside, by copies, and not deleted
    assert not jsonl.exists(epath.Path(RUN) / "metrics.jsonl")
    assert steps("before-1/metrics.jsonl") == [*range(1, 7)] and len(steps("before-1/samples.jsonl")) == 12


def test_a_file_without_parts_does_not_exist(bucket):
    assert not jsonl.exists(epath.Path(RUN) / "metrics.jsonl")
    with pytest.raises(FileNotFoundError, match="metrics.jsonl: no object"):
        jsonl.read(f"{RUN}/metrics.jsonl")


def test_the_stand_in_refuses_what_a_bucket_refuses(bucket):
    path = epath.Path(RUN) / "x"
    path.parent.mkdir(parents=True)
    path.write_text("1")
    for wrong in (lambda: path.open("a"), lambda: path.rename(path), lambda: path.replace(path)):
        with pytest.raises(NotImplementedError, match="a bucket does not"):
            wrong()
