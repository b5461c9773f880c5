"""Torments a small run with every fault it is meant to survive, and compares it with a twin that was left alone.

    python -m tests.soak --minutes=20 [--seed=0] [--steps=600] [--folder=/tmp/soak]

The run (`tests/small_runs.py`) is started again and again. Each process gets SIGKILL or SIGTERM at a random time; it
may also lose a grader, or find its disk full. Between processes the newest checkpoint may be damaged, a line of the
record torn, or something strange put beside the checkpoints. In the end every parameter, optimiser state and token
state, every row of metrics (times aside) and every sample must be those of the twin, bit for bit. If a run ends before
the time is up, another one follows with the next seed.

The exit code is 0 if nothing differed and no process ended in a way it should not have; 1 otherwise, and the folder is
kept. Linux only for the faults of graders and, as root, for a disk that is really full; without root the size of files
is limited instead (RLIMIT_FSIZE).
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from tests import small_runs

GRADER_WALL = 5.0  # seconds until a grader that hangs is replaced: ten times reward.cpu_seconds
PATIENCE = 600.0  # seconds for a process to end after SIGTERM, or to finish its run
SHORTEST = 120.0  # seconds that have to be left for another run
DISK_MB = 64


class Torment:
    """One run, its twin, and the faults that it has met.

    Args:
        folder: of both runs and their logs.
        seed: of the runs and of the faults.
        steps: of the runs.

    Attributes:
        faults: how often each was made.
        wrong: sentences about what should not have been.
        disk_full: whether the process that was started last has no room.
        start_seconds: from the start of a process to its first step, as the twin took it.
    """

    def __init__(self, folder: pathlib.Path, seed: int, steps: int):
        self.run, self.twin, self.cache = folder / f"{seed}/run", folder / f"{seed}/twin", folder / "cache"
        self.steps, self.random = steps, random.Random(seed)
        self.flags = [
            f"--config.seed={seed}",
            f"--config.train.steps={steps}",
            "--config.warmup.updates=200",
            f"--config.reward.cpu_seconds={GRADER_WALL / 10}",
            "--config.eval.every=20",
            "--config.checkpoint.every=7",
            "--config.checkpoint.keep=3",
        ]
        self.faults: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.disk_full, self.start_seconds = False, 0.0

    def prime(self) -> None:
        """Compiles everything once, so that processes that live for seconds come to train."""
        began = time.monotonic()
        small_runs.finish(self.run.with_name("primer"), self.cache, *self.flags, "--config.train.steps=20", limit=None)
        say(f"compiled in {time.monotonic() - began:.0f} s")

    def raise_twin(self) -> None:
        """Runs the twin from start to end, and learns from it how long a start takes."""
        process, began = small_runs.start(self.twin, self.cache, *self.flags), time.monotonic()
        while process.poll() is None:
            if not self.start_seconds and newest_row(self.twin) >= 1:
                self.start_seconds = time.monotonic() - began
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"the twin failed by itself, see {small_runs.log_of(self.twin)}")
        say(f"twin: {self.steps} steps in {time.monotonic() - began:.0f} s, the first after {self.start_seconds:.0f} s")

    def torment(self, until: float) -> None:
        """Starts, hurts and ends processes until the run has finished, or `until`; then lets it finish."""
        while newest_row(self.run) < self.steps and time.monotonic() < until:
            self.one_life(min(until - time.monotonic(), self.random.uniform(0, self.start_seconds + 10)))
            self.between()
        process = small_runs.start(self.run, self.cache, *self.flags)
        if process.wait():
            self.blame(process, "nothing: it was to finish the run")
        else:
            self.wrong += small_runs.differences(self.twin, self.run, self.steps)[:20]

    def one_life(self, seconds: float) -> None:
        """One process: started, perhaps without room on its disk or robbed of a grader, and ended after `seconds`."""
        full = self.random.random() < 0.15
        program = self.fill_disk() if full else small_runs.COMMAND
        process = small_runs.start(self.run, self.cache, *self.flags, program=program)
        ends, robbed = time.monotonic() + seconds, self.random.random() > 0.3
        while process.poll() is None and time.monotonic() < ends:
            # one per process: an answer that lost two graders may count as one that cannot be scored
            robbed = robbed or self.rob_of_a_grader(process.pid, ends)
            time.sleep(0.05)
        how = self.random.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGTERM, then SIGKILL"])
        if process.poll() is None:
            self.end(process, how)
        elif full and process.returncode:
            self.faults["disk full: process ended by itself"] += 1
        elif process.returncode:
            self.blame(process, "it ended by itself")
        self.free_disk()

    def end(self, process: subprocess.Popen, how: str) -> None:
        """Ends a process by signals: it may have finished just before, or end with code 75 after SIGTERM."""
        process.send_signal(signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM)
        if how == "SIGTERM, then SIGKILL":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.random.uniform(0, 1))
            process.kill()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            self.wrong.append(f"a process lived {PATIENCE:.0f} s after {how}")
        self.faults[how] += 1
        if process.wait() not in {"SIGKILL": (0, -9), "SIGTERM": (0, 75)}.get(how, (0, 75, -9)) and not self.disk_full:
            self.blame(process, how)

    def blame(self, process: subprocess.Popen, after: str) -> None:
        """Notes an exit code that no fault explains, with the end of the log."""
        tail = "".join(small_runs.log_of(self.run).read_text(errors="replace").splitlines(keepends=True)[-15:])
        self.wrong.append(f"exit code {process.returncode}, after: {after}\n{tail}")
        say(self.wrong[-1])

    def between(self) -> None:
        """What may happen to the files while no process runs."""
        for fault in (self.flip, self.cut, self.tear, self.stray):
            if self.random.random() < 0.15:
                fault()

    def newest_files(self) -> list[pathlib.Path]:
        """The files of the newest checkpoint, if an older one is left to fall back to."""
        folder = self.run / "checkpoints"
        saved = [path for path in folder.glob("*/manifest.json") if path.parent.name.isdigit()]
        if len(saved) < 2:
            return []
        newest = max(saved, key=lambda path: int(path.parent.name)).parent
        return sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)

    def flip(self) -> None:
        """Flips one bit of the newest checkpoint."""
        if files := self.newest_files():
            file = self.random.choice(files)
            data = bytearray(file.read_bytes())
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            file.write_bytes(data)
            self.faults["bit flipped in the newest checkpoint"] += 1

    def cut(self) -> None:
        """Cuts or removes one file of the newest checkpoint."""
        if files := self.newest_files():
            file = self.random.choice(files)
            if self.random.random() < 0.5:
                os.truncate(file, file.stat().st_size // 2)
            else:
                file.unlink()
            self.faults["file of the newest checkpoint cut or removed"] += 1

    def tear(self) -> None:
        """Adds half a line to the record, as a process does that dies in the middle of a write."""
        file = self.run / self.random.choice(["metrics.jsonl", "samples.jsonl"])
        if file.exists():
            with file.open("a") as out:
                out.write('{"step": 3, "rew')
            self.faults["line torn"] += 1

    def stray(self) -> None:
        """Puts a folder or a file beside the checkpoints, or takes it away again."""
        folder = self.run / "checkpoints" / self.random.choice(["99999", "tmp.3", "notes"])
        if not self.run.exists():
            return
        if folder.is_dir():
            shutil.rmtree(folder)
        elif folder.exists():
            folder.unlink()
        elif self.random.random() < 0.5:
            folder.mkdir(parents=True)
        else:
            folder.parent.mkdir(exist_ok=True)
            folder.write_text("not a checkpoint")
        self.faults["stray file or folder made or removed"] += 1

    def rob_of_a_grader(self, pid: int, ends: float) -> bool:
        """Kills or stops one of a process's graders, if it has any by now: whether that was done."""
        hang = self.random.random() < 0.5
        if hang and ends - time.monotonic() < 2 * GRADER_WALL:
            return False  # the process would not live to see it
        graders = [p for p, depth in descendants(pid) if depth >= (3 if hang else 1)]
        if not graders or self.random.random() < 0.8:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.random.choice(graders), signal.SIGSTOP if hang else signal.SIGKILL)
            self.faults["grader hung" if hang else "grader killed"] += 1
            return True
        return False

    def fill_disk(self) -> tuple[str, ...]:
        """Leaves the next process little room, and returns what Python has to run for that."""
        self.disk_full = True
        self.faults["disk full"] += 1
        room = self.random.randrange(200_000)
        if not os.path.ismount(self.run):
            return small_runs.with_room(room)
        (self.run / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(self.run).free - room)))
        return small_runs.COMMAND

    def free_disk(self) -> None:
        """Gives the room back."""
        self.disk_full = False
        (self.run / "ballast").unlink(missing_ok=True)


def newest_row(workdir: pathlib.Path) -> int:
    """The step of the last whole row of metrics; −1 without one."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return -1
    return int(lines[-1].split(b",")[0].split(b":")[1]) if lines else -1


def descendants(pid: int, depth: int = 1) -> Iterator[tuple[int, int]]:
    """(process id, generation) of all children, grandchildren and so on of a process."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in map(int, children):
        yield child, depth
        yield from descendants(child, depth + 1)


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[None]:
    """A disk of its own for a folder, if this user may mount one."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "soak", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            kept = path.with_name("kept")
            shutil.copytree(path, kept, dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(path)], check=True)
            shutil.copytree(kept, path, dirs_exist_ok=True)
            shutil.rmtree(kept)


def say(text: str) -> None:
    """A line with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long, twins included, compilations aside")
    parser.add_argument("--seed", type=int, default=0, help="of the first run and of its faults")
    parser.add_argument("--steps", type=int, default=600, help="of each run")
    parser.add_argument("--folder", type=pathlib.Path, help="a new folder for the runs; default: a temporary one")
    args = parser.parse_args()
    folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    until, seed, wrong = 0.0, args.seed, 0
    total: collections.Counter[str] = collections.Counter()
    while seed == args.seed or time.monotonic() + SHORTEST < until:
        torment = Torment(folder.resolve(), seed, args.steps)
        if seed == args.seed:
            torment.prime()
            until = time.monotonic() + 60 * args.minutes
        torment.raise_twin()
        with small_disk(torment.run):
            torment.torment(until)
        compared = len(small_runs.leaves(torment.twin, args.steps)) // 2
        say(f"seed {seed}: {args.steps} steps and {compared} leaves compared; {torment.faults.total()} faults")
        for sentence in torment.wrong:
            say(f"seed {seed}: {sentence}")
        total += torment.faults
        wrong += len(torment.wrong)
        seed += 1
    for fault, count in sorted(total.items()):
        print(f"{count:6d}  {fault}")
    kills = sum(count for fault, count in total.items() if fault.startswith("SIG"))
    print(f"{seed - args.seed} runs, {kills} kills: {'bit-identical' if not wrong else f'{wrong} DIFFERENCES'}")
    if wrong:
        sys.exit(f"the runs are kept in {folder}")
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
