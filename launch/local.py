#!/usr/bin/env python3
"""A run of several processes on this machine, each with CPU devices of its own.

    python launch/local.py --processes=2 --devices=4 -- --config=configs/quickstart.py --workdir=runs/two

What follows `--` goes to `python -m entropy_rl.train` (--module names another). The run ends as its processes do: with
0 when all have; when one fails, or is killed, the others are stopped and its exit code is the command's. With
--restarts=N a run that was preempted (exit code 75), or lost a process, is started again, up to N times.
SIGTERM and SIGINT are passed on, so that the run saves and leaves with 75.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

PREEMPTED = 75


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """What process `index` is told about the others, and its number of virtual devices."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
    }


def run(command: list[str], processes: int, devices: int, grace: float) -> int:
    """Runs the command in so many processes and waits; the exit code of the first that failed, or 0."""
    port = free_port()
    running = [
        subprocess.Popen(command, env=os.environ | environment(i, processes, devices, port)) for i in range(processes)
    ]

    def pass_on(signum, frame):
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
        return 128 - failed if failed < 0 else failed  # as a shell says that a signal killed it
    finally:
        for p in running:
            p.kill()
        for s, handler in before.items():
            signal.signal(s, handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices of each process")
    parser.add_argument("--grace", type=float, default=15, help="seconds for the others to end once one has failed")
    parser.add_argument("--restarts", type=int, default=0, help="how often a preempted or broken run is started again")
    parser.add_argument("--module", default="entropy_rl.train")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("arguments", nargs="*", help="of the module, after --")
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
