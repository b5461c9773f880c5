"""Several processes: how start-up reads the environment, and two processes that train as one does."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from entropy_rl.record.lock import Lock
from entropy_rl.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
PLAIN = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}


@pytest.mark.parametrize(
    "env, on_tpu, kind",
    [
        ({}, False, None),
        (PLAIN, False, "plain"),
        (PLAIN | SLURM, True, "plain"),
        (SLURM, False, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "KUBERNETES_SERVICE_HOST": "1"}, True, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2", "KUBERNETES_SERVICE_HOST": "1"}, True, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "a", "KUBERNETES_SERVICE_HOST": "1"}, True, None),
        ({"COLAB_RELEASE_TAG": "x"}, True, None),
        ({}, True, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, None),
    ],
)
def test_start_up_recognises_the_kind_of_run(env, on_tpu, kind):
    found = distributed.cluster(env, on_tpu)
    assert (found and found[0]) == kind
    if kind == "plain":
        assert found[1]["coordinator_address"] == "host:1234"
        assert (found[1]["num_processes"], found[1]["process_id"]) == (4, 3)


def test_a_plain_run_with_variables_missing_is_refused():
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        distributed.cluster({"JAX_COORDINATOR_ADDRESS": "host:1"}, False)
    with pytest.raises(ValueError, match=r"JAX_PROCESS_ID=4 must be from 0 to JAX_NUM_PROCESSES − 1 = 3"):
        distributed.cluster(PLAIN | {"JAX_PROCESS_ID": "4"}, False)


def test_a_single_process_does_everything_itself():
    assert distributed.first() and distributed.anyone(True) and not distributed.anyone(False)
    assert distributed.collect({"a": 1}) == [{"a": 1}]
    assert distributed.share([1, 2, 3], lambda items: [2 * x for x in items]) == [2, 4, 6]


def test_an_error_on_one_process_is_raised_on_both(tmp_path):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "launch/local.py", "--processes=2", "--module=agreement", "--", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    written = [(tmp_path / i).read_text() for i in "01"]
    assert written[0] == "[[0, 10, 20], 'RuntimeError: process 1 failed with OSError: no such device', True]"
    assert written[1] == "[[0, 10, 20], 'OSError: no such device', True]"


FLAGS = [
    "--config=configs/quickstart.py:clip_cov",
    "--config.data.settings.min_terms=2",
    "--config.data.settings.max_terms=2",
    "--config.model.tiny.n_layers=2",
    "--config.warmup.updates=2",
    "--config.warmup.batch=32",
    "--config.optim.name=sgd",  # AdamW's first updates are signs: a rounding difference could flip one
    "--config.optim.lr=0.1",
    "--config.rollout.prompts=16",
    "--config.rollout.samples=4",
    "--config.rollout.max_tokens=20",
    "--config.rollout.slots=24",
    "--config.rollout.refills=1",
    "--config.reward.weights.length=0.5",
    "--config.train.steps=4",
    "--config.train.updates_per_rollout=2",
    "--config.eval.every=2",
    "--config.eval.problems=8",
    "--config.eval.batch=8",
    "--config.checkpoint.every=2",
    "--config.measure.every=2",
    "--config.log.rollouts=2",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
    "--config.rollout.tensor=2",
]


def local(processes, devices, workdir, *more):
    return launched(processes, devices, "--", *FLAGS, f"--workdir={workdir}", *more)


def launched(processes, devices, *more):
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "launch/local.py", f"--processes={processes}", f"--devices={devices}", *more]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    _, err = process.communicate(timeout=900)
    assert process.returncode == code, err[-4000:]
    return err


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """The same tokens, rewards and selections; figures agree except for the order of sums."""
    finish(local(1, 4, tmp_path / "one"))
    finish(local(2, 2, tmp_path / "two"))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [r["step"] for r in one] == [r["step"] for r in two] == [0, 1, 2, 3, 4]
    assert (tmp_path / "one/samples.jsonl").read_text().count("\n") == 16
    # and there is something to learn: from lengths alone, because an untrained model is never right
    assert all(r["grad/norm"] > 0 for r in one[1:]) and any(r["tokens/kept_frac"] < 1 for r in one[1:])
    assert any(r["refill/tokens"] > 0 for r in one[1:]) and len({r["length/mean"] for r in one[1:]}) > 1
    for a, b in zip(one, two, strict=True):
        for key in a.keys() | b.keys():
            if "time" in key or "throughput" in key:
                continue
            if a[key] is None or b[key] is None:
                assert a[key] == b[key], key
            else:
                np.testing.assert_allclose(b[key], a[key], rtol=2e-3, atol=2e-5, err_msg=f"{a['step']} {key}")

    def texts(run):
        return [json.loads(x)["response"] for x in (run / "samples.jsonl").read_text().splitlines()]

    assert texts(tmp_path / "one") == texts(tmp_path / "two")
    # two processes record the same tokens, each its share
    recorded = [
        pd.read_parquet(tmp_path / run / "rollouts").sort_values(["step", "prompt", "sample"]) for run in ("one", "two")
    ]
    assert sorted(p.name for p in (tmp_path / "two/rollouts").iterdir()) == [
        f"step-0000000{step}.p{process}.parquet" for step in (2, 4) for process in (0, 1)
    ]
    assert len(recorded[0]) == len(recorded[1]) == 2 * 64
    for name in ("text", "reward", "fate", "id"):
        assert [list(x) if name in ("fate", "id") else x for x in recorded[0][name]] == [
            list(x) if name in ("fate", "id") else x for x in recorded[1][name]
        ], name
    for name in ("logp", "entropy", "covariance", "gradient_after"):
        a, b = (np.concatenate(found[name].to_list()) for found in recorded)
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-4, err_msg=name)
    # one process and two evaluate the run that one wrote
    for processes, devices in ((1, 4), (2, 2)):
        out = tmp_path / f"by{processes}"
        flags = [f"--workdir={tmp_path / 'one'}", f"--out={out}", "--k=2", "--problems=6", "--batch=8"]
        finish(launched(processes, devices, "--module=entropy_rl.evaluate", "--", *flags))
    found = [sorted((tmp_path / by / "responses.jsonl").read_text().splitlines()) for by in ("by1", "by2")]

    def without_entropy(line):
        return {k: v for k, v in json.loads(line).items() if k != "entropy"}

    assert len(found[0]) == 18 and [without_entropy(x) for x in found[0]] == [without_entropy(x) for x in found[1]]
    # one process resumes the run of two, on another layout, and two resume the run of one
    finish(
        local(
            1,
            1,
            tmp_path / "two",
            "--config.train.steps=5",
            "--config.mesh.data=1",
            "--config.mesh.fsdp=1",
            "--config.rollout.tensor=0",
            "--force",
        )
    )
    assert rows(tmp_path / "two")[-1]["step"] == 5
    finish(local(2, 1, tmp_path / "one", "--config.train.steps=5", "--config.mesh.data=1", "--force"))
    assert rows(tmp_path / "one")[-1]["step"] == 5


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_and_the_run_resumes(tmp_path):
    process = local(2, 2, tmp_path / "run", "--config.train.steps=500")
    while not (tmp_path / "run/metrics.jsonl").exists() or len(rows(tmp_path / "run")) < 2:
        assert process.poll() is None, process.stderr.read()[-4000:]
        time.sleep(0.2)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    finish(process, code=75)
    done = rows(tmp_path / "run")[-1]["step"]
    finish(local(2, 2, tmp_path / "run", f"--config.train.steps={done + 1}"))
    assert [r["step"] for r in rows(tmp_path / "run")] == list(range(done + 2))


@pytest.mark.slow
def test_two_processes_leave_a_directory_that_is_in_use(tmp_path):
    with Lock(tmp_path / "run"):
        before = (tmp_path / "run" / "lock.json").read_text()
        err = finish(local(2, 2, tmp_path / "run"), code=1)
        assert json.loads((tmp_path / "run" / "lock.json").read_text())["pid"] == json.loads(before)["pid"]
    assert err.count("is in use by another run") == 2 and "Traceback" not in err
    assert list((tmp_path / "run").iterdir()) == []
