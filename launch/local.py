#!/usr/bin/env python3
"""A run of several processes on this machine, each with its own virtual CPU devices.

    python launch/local.py --processes=2 --devices=4 -- --config=configs/quickstart.py --workdir=runs/two

The arguments after `--` go to `python -m entropy_rl.train` (--module names another module). The exit code is 0 when all
processes have ended with 0. When one fails or is killed, the others are stopped and the exit code is that of the first
that failed. With --restarts=N, a run that was preempted (exit code 75) or lost a process is started again, up to N
times. SIGTERM and SIGINT are passed on to the processes, so that the run saves and exits with 75, or with 130.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import types

PREEMPTED = 75


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables through which process `index` finds the others, and its number of virtual devices."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
    }


def run(command: list[str], processes: int, devices: int, grace: float) -> int:
    """Runs the command in several processes and waits for all of them.

    Args:
        command: The command of every process.
        processes: The number of processes.
        devices: The number of virtual devices of each.
        grace: Seconds that the other processes have to end after one has failed; then they are killed.

    Returns:
        The exit code of the first process that failed, as a shell reports it (128 + signal); otherwise 0.
    """
    port = free_port()
    running = [
        subprocess.Popen(command, env=os.environ | environment(i, processes, devices, port)) for i in range(processes)
    ]

    def pass_on(signum: int, frame: types.FrameType | None) -> None:
        for p in running:
            p.send_signal(signum)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        failed, deadline = 0, float("inf")
        while any(p.poll() is None for p in running):
            if not failed and (codes := [p.returncode for p in running if p.returncode]):
                failed, deadline = codes[0], time.monotonic() + grace
            if time.monotonic() > deadline:
                pass_on(signal.SIGKILL, None)
            time.sleep(0.1)
        failed = failed or next((p.returncode for p in running if p.returncode), 0)
        return 128 - failed if failed < 0 else failed
    finally:
        for p in running:
            p.kill()
        for s, handler in before.items():
            signal.signal(s, handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices per process")
    parser.add_argument("--grace", type=float, default=15, help="seconds for the others to end after one has failed")
    parser.add_argument("--restarts", type=int, default=0, help="restarts of a preempted or broken run, at most")
    parser.add_argument("--module", default="entropy_rl.train")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("arguments", nargs="*", help="arguments of the module, after --")
    options = parser.parse_args()
    command = [sys.executable, "-m", options.module, *options.arguments]
    if options.dry_run:
        for i in range(options.processes):
            env = environment(i, options.processes, options.devices, 0) | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:PORT"}
            print(*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(command))
        return 0
    for left in range(options.restarts, -1, -1):
        code = run(command, options.processes, options.devices, options.grace)
        killed = code > 128 and code not in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        if not (code == PREEMPTED or killed) or not left:
            break
        print(f"launch/local.py: exit code {code}, starting again ({left - 1} restarts left)", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
