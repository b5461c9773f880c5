"""What a sweep runs: arms (a method with settings) × seeds, each an ordinary run of `python -m entropy_rl.train`."""

import hashlib
import itertools
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.config import command_line
from entropy_rl.config.assign import assign
from entropy_rl.training import warmup

Settings = tuple[tuple[str, str], ...]  # (key, value) as on the command line, in its order

_OPEN, _CLOSED = "([{", ")]}"


class Arm(NamedTuple):
    """A line of the table: one method with one value of every axis.

    Attributes:
        name: the method, and the axes' values if there are axes.
        method: the recipe.
        settings: the axes' values.
        base: the name of the arm that it is compared with; its own if it is that one.
    """

    name: str
    method: str
    settings: Settings
    base: str


class Job(NamedTuple):
    """One run.

    Attributes:
        arm: the arm's name.
        seed: the run's.
        folder: its run directory, relative to the sweep's.
        flags: of `python -m entropy_rl.train`, without --workdir.
        steps: `train.steps`.
        warm_up: the folder of the run whose warm-up it shares, relative to the sweep's; "": it has none.
    """

    arm: str
    seed: int
    folder: str
    flags: tuple[str, ...]
    steps: int
    warm_up: str = ""

    def command(self, workdir: str) -> str:
        """The command that makes this run again, bit for bit, in another place."""
        return shlex.join(["python", "-m", "entropy_rl.train", *self.flags, f"--workdir={workdir}"])


class Plan(NamedTuple):
    """Everything that a sweep runs.

    Attributes:
        arms: in the order of the table.
        warm_ups: runs of no step, which the others start from.
        jobs: the runs.
    """

    arms: list[Arm]
    warm_ups: list[Job]
    jobs: list[Job]


def seeds_of(text: str) -> list[int]:
    """Seeds as the command line gives them: "10": 0 to 9; "100-101": from the first to the last; "3,5": these.

    >>> seeds_of("3"), seeds_of("100-101"), seeds_of("3,5")
    ([0, 1, 2], [100, 101], [3, 5])

    Raises:
        ValueError: Anything else.
    """
    if re.fullmatch(r"[1-9]\d*", text):
        return list(range(int(text)))
    if (span := re.fullmatch(r"(\d+)-(\d+)", text)) and int(span[1]) <= int(span[2]):
        return list(range(int(span[1]), int(span[2]) + 1))
    if re.fullmatch(r"\d+(,\d+)+", text) and len(set(text.split(","))) == text.count(",") + 1:
        return [int(seed) for seed in text.split(",")]
    raise ValueError(f"--seeds={text}: give a number of seeds (10), a span (100-109), or different seeds (3,5)")


def values_of(text: str) -> list[str]:
    """The values of an axis: `text` cut at its commas, except inside brackets and quotes.

    >>> values_of("0.1,0.2"), values_of("[1,2],[3]")
    (['0.1', '0.2'], ['[1,2]', '[3]'])
    """
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPEN) - (letter in _CLOSED)
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return values


def plan(config: str, methods: Sequence[str], seeds: Sequence[int], settings: Sequence[tuple[str, str]]) -> Plan:
    """The runs of a sweep, each with a checked configuration.

    Args:
        config: a config file, or file:argument; the method is added to the argument.
        methods: recipes.
        seeds: of every arm.
        settings: (key, values) of `--config.key=values`; a key with several values is an axis.

    Raises:
        ValueError: A wrong method, key, value or configuration; names the arm.
    """
    if len(set(methods)) < len(methods):
        raise ValueError(f"--methods={','.join(methods)}: a method is named twice")
    fixed = tuple((key, value) for key, value in settings if len(values_of(value)) == 1)
    axes = [[(key, value) for value in values_of(text)] for key, text in settings if len(values_of(text)) > 1]
    arms, jobs, warm_ups = [], [], dict[str, Job]()
    for method, chosen in itertools.product(methods, itertools.product(*axes)):
        first = method if len(methods) == 1 else methods[0]
        base = tuple(axis[0] for axis in axes) if len(methods) == 1 else chosen
        arms.append(Arm(_name(method, chosen), method, chosen, _name(first, base)))
        for seed in seeds:
            job = _job(arms[-1], config, fixed, seed)
            c = read_config(job.flags)
            if c.warmup.updates:
                shared = _warm_up(job, c)
                job = job._replace(warm_up=warm_ups.setdefault(shared.folder, shared).folder)
            jobs.append(job._replace(steps=c.train.steps))
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError("two runs would share a folder: name every value of an axis once")
    return Plan(arms, list(warm_ups.values()), jobs)


def read_config(run_flags: Sequence[str]) -> ConfigDict:
    """The configuration that `python -m entropy_rl.train` reads from its flags, checked.

    Raises:
        ValueError: It is wrong; the message names the flags.
    """
    assignments, (file,) = command_line.split(run_flags)
    try:
        c = command_line.load_file(file.removeprefix("--config="))
        assign(c, assignments)
        config_lib.check(c)
    except ValueError as error:
        raise ValueError(f"{shlex.join(run_flags)}: {error}") from error
    return c


def _name(method: str, chosen: Settings) -> str:
    return ",".join([method, *(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in chosen)])


def _job(arm: Arm, config: str, fixed: Settings, seed: int) -> Job:
    named = f"{config},{arm.method}" if ":" in pathlib.PurePath(config).name else f"{config}:{arm.method}"
    settings = [f"--config.{key}={value}" for key, value in (*fixed, *arm.settings)]
    folder = f"runs/{re.sub(r'[^-+.,=A-Za-z0-9_]', '_', arm.name)}/seed-{seed}"
    return Job(arm.name, seed, folder, (f"--config={named}", f"--config.seed={seed}", *settings), 0)


def _warm_up(job: Job, c: ConfigDict) -> Job:
    """The run of no step that ends with the warm-up of this configuration."""
    folder = f"warmups/seed-{job.seed}-{_fingerprint(warmup.settings_of(c.to_dict()))}"
    return Job(job.arm, job.seed, folder, (*job.flags, "--config.train.steps=0", "--config.eval.every=0"), 0)


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
