"""Hugging Face folders along a run: when they are written, and that none is ever there by half."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from shared_folder import NoLock
from test_jsonl import bucket  # noqa: F401
from test_lock import of_another
from tiny_models import FAMILIES, random_params, tiny_tokenizer

import entropy_rl as erl
from entropy_rl.model import hf, lora
from entropy_rl.model.config import Lora
from entropy_rl.record import hf_folders
from entropy_rl.record.hf_folders import HfFolders
from entropy_rl.record.lock import Lock

ROOT = Path(__file__).parents[2]
CFG = FAMILIES["llama"]


@pytest.fixture(scope="module")
def params():
    return jax.device_put(random_params(CFG))


@pytest.fixture
def folders(tmp_path):
    with Lock(tmp_path) as lock:
        lock.confirm()
        yield HfFolders(tmp_path, 4, 10, CFG, tiny_tokenizer(), lock)


def names(workdir):
    return sorted(path.name for path in (workdir / "hf").iterdir())


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in (workdir / "hf").rglob("*")}


def test_multiples_and_the_last_step_have_folders_that_load(folders, params, tmp_path):
    for step in range(11):
        folders.reached(step, jax.tree.map(lambda x: x + step, params))  # noqa: B023
    assert names(tmp_path) == ["step-00000000", "step-00000004", "step-00000008", "step-00000010"]
    loaded = erl.load(str(tmp_path / "hf/step-00000004")).params
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b + 4)), loaded, params))


def test_adapters_have_a_folder_of_their_own_beside_the_merged_model(tmp_path):
    adapted = lora.adapted(CFG, Lora(2, 4.0, ("q", "down")))
    params = jax.device_put(random_params(adapted))
    hf.save_folder(tmp_path / "base", CFG, lora.split(params)[1], tiny_tokenizer())
    HfFolders(tmp_path, 4, 10, adapted, tiny_tokenizer(), NoLock(), str(tmp_path / "base")).reached(4, params)
    assert names(tmp_path) == ["step-00000004", "step-00000004-adapter"]
    want = lora.merged(adapted, params, np.float32)
    for name in names(tmp_path):
        loaded = erl.load(str(tmp_path / "hf" / name)).params
        assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), loaded, want))


def test_in_a_bucket_the_adapters_configuration_comes_last(bucket, tmp_path):  # noqa: F811
    adapted = lora.adapted(CFG, Lora(2, 4.0, ("q",)))
    there = HfFolders("gs://bucket/runs/a", 4, 10, adapted, tiny_tokenizer(), NoLock(), "the/base")
    there.reached(4, jax.device_put(random_params(adapted)))
    assert bucket.puts[:2] == ["adapter_model.safetensors", "adapter_config.json"] and bucket.puts[-1] == "config.json"


def test_none_are_written_unless_they_are_asked_for(params, tmp_path):
    with Lock(tmp_path) as lock:
        lock.confirm()
        none = HfFolders(tmp_path, 0, 4, CFG, tiny_tokenizer(), lock)
        none.reached(0, params)
        none.resumed(4, params)
    assert not (tmp_path / "hf").exists()


def test_a_resumed_run_writes_the_folder_that_it_lacks_and_no_other(folders, params, tmp_path):
    folders.resumed(3, params)
    assert not (tmp_path / "hf").exists()
    folders.resumed(4, params)
    before = times(tmp_path)
    assert before
    folders.resumed(4, params)
    assert times(tmp_path) == before
    folders.reached(4, jax.tree.map(lambda x: x + 1, params))  # made again after a fallback: replaced
    assert names(tmp_path) == ["step-00000004"] and times(tmp_path) != before


def test_a_folder_that_was_not_finished_is_not_there(folders, params, tmp_path, monkeypatch):
    folders.reached(0, params)
    with monkeypatch.context() as patched:

        def fail(*args):
            raise OSError(28, "No space left on device")

        patched.setattr(hf, "write_shards", fail)
        with pytest.raises(OSError, match=r"hf/step-00000004 could not be written \(No space left on device\)"):
            folders.reached(4, params)
        with pytest.raises(OSError, match="could not be written"):
            folders.reached(0, params)
    assert names(tmp_path) == ["step-00000000"]  # whole, as before
    erl.load(str(tmp_path / "hf/step-00000000"))


KILLED = """
import os, sys
sys.path.insert(0, "tests")
import jax
from tiny_models import FAMILIES, random_params, tiny_tokenizer
from entropy_rl.model import hf, lora
from entropy_rl.model.config import Lora
from entropy_rl.record.hf_folders import HfFolders
from entropy_rl.record.lock import Lock

true = hf.tensor_file.write
hf.tensor_file.write = lambda *args: (true(*args), os._exit(9))
with Lock(sys.argv[1]) as lock:
    lock.confirm()
    cfg = FAMILIES["llama"]
    HfFolders(sys.argv[1], 4, 10, cfg, tiny_tokenizer(), lock).reached(4, jax.device_put(random_params(cfg)))
"""


def test_a_process_that_dies_in_a_write_leaves_no_folder_and_the_next_write_clears_up(params, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 9, done.stderr
    assert names(tmp_path) == ["step-00000004.new"]  # not the name of a folder of the run
    with Lock(tmp_path) as lock:
        lock.confirm()
        HfFolders(tmp_path, 4, 10, CFG, tiny_tokenizer(), lock).reached(8, params)
    assert names(tmp_path) == ["step-00000008"]


def test_a_run_that_lost_its_lock_writes_none(folders, params, tmp_path):
    of_another(tmp_path / "lock.json")
    with pytest.raises(RuntimeError, match="has taken this directory over"):
        folders.reached(4, params)
    assert not (tmp_path / "hf").exists()


def test_in_a_bucket_the_configuration_comes_last(bucket, params, tmp_path, monkeypatch):  # noqa: F811
    run = "gs://bucket/runs/a"
    there = HfFolders(run, 4, 10, CFG, tiny_tokenizer(), NoLock())
    there.reached(4, params)
    assert bucket.puts[-1] == "config.json" and "model.safetensors" in bucket.puts
    erl.load(str(tmp_path / "bucket/runs/a/hf/step-00000004"))
    count = len(bucket.puts)
    there.resumed(4, params)
    assert len(bucket.puts) == count
    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"step-00000004 could not be written \(gone\)"):
        patched.setattr(hf_folders.shutil, "copyfileobj", lambda *args: (_ for _ in ()).throw(OSError("gone")))
        there.reached(4, params)
    assert not (tmp_path / "bucket/runs/a/hf/step-00000004/config.json").exists()  # no model, until it is written again
    there.resumed(4, params)
    erl.load(str(tmp_path / "bucket/runs/a/hf/step-00000004"))


@pytest.mark.slow
def test_two_processes_that_hold_the_parameters_together_write_one_folder_and_fail_together(params, tmp_path):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "launch/local.py", "--processes=2", "--module=shared_folder", "--", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert names(tmp_path) == ["step-00000004"]
    loaded = erl.load(str(tmp_path / "hf/step-00000004")).params
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), loaded, params))
    first, second = ((tmp_path / i).read_text() for i in "01")
    assert first.startswith("OSError") and "step-00000008 could not be written (No space left on device)" in first
    assert second.startswith("RuntimeError: process 0 failed with OSError")
