"""The first settings with which a run fits, found by trying.

Each trial changes one thing, chosen by the program that is too large, and in the order of what it costs: pieces of an
update (a pass more, once), remat (a forward pass), slots and the evaluation's batch (more rounds), and, if the state
alone is too large, LoRA.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.report import Report
from entropy_rl.runtime.mesh import DATA, FSDP

RANK = 16  # of the adapters that are suggested
Preflight = Callable[[ConfigDict, Topology], Report]


class Suggestion(NamedTuple):
    """Settings that were tried last.

    Attributes:
        settings: key -> value, what differs from the configuration that was given.
        report: with these settings; if it does not fit, nothing that was tried does.
        trials: the number of reports that were made.
    """

    settings: dict[str, Any]
    report: Report
    trials: int

    @property
    def flags(self) -> str:
        """The settings as a command takes them."""
        return " ".join(f"--config.{key}={value}" for key, value in self.settings.items())


def suggest(c: ConfigDict, topology: Topology, preflight: Preflight, adapters: bool = True) -> Suggestion:
    """The first settings that fit.

    Args:
        c: the configuration; it is not changed.
        topology: the chips.
        preflight: makes the report of a configuration.
        adapters: LoRA may be suggested.
    """
    settings: dict[str, Any] = {}
    trials = 0
    while True:
        trial = c.copy_and_resolve_references()
        trial.update_from_flattened_dict(settings)
        report, trials = preflight(trial, topology), trials + 1
        change = None if report.fits else next_change(trial, report, adapters)
        if change is None:
            return Suggestion(settings, report, trials)
        logging.info("%.1f of %.1f GB; trying %s", report.peak / 1e9, report.capacity / 1e9, change)
        if "model.lora.rank" in change:  # the rest was chosen for a larger state
            settings = {}
        settings = settings | change


def next_change(c: ConfigDict, report: Report, adapters: bool) -> dict[str, Any] | None:
    """What to try after a report that does not fit; None: nothing is left."""
    room = report.capacity - report.parameters - report.optimiser
    change: dict[str, Any] | None = None
    if room > 0:
        for name, program in report.programs.items():
            if program["peak"] > report.capacity:
                change = _smaller(c, report, name, room)
                break
    if change is None and adapters and not c.model.lora.rank:
        change = {"model.lora.rank": RANK}
    return change


def _smaller(c: ConfigDict, report: Report, name: str, room: float) -> dict[str, Any] | None:
    """A change that makes one program smaller; None: none is left."""
    over = (report.programs[name]["peak"] - report.parameters - report.optimiser) / room
    if name == "warm-up update":
        return _pieces("warmup.micro_batches", c.warmup.micro_batches, c.warmup.batch, over) or _remat(c)
    if name in ("update", "measured update", "score"):
        per_update = c.rollout.prompts // c.train.updates_per_rollout
        more = _pieces("train.micro_batches", c.train.micro_batches, per_update, over)
        return more or _remat(c) or ({"measure.every": 0} if name == "measured update" else None)
    if "evaluation" in name:
        return {"eval.batch": c.eval.batch // 2} if c.eval.batch > 1 else None
    least = report.sampling_mesh[DATA] * report.sampling_mesh[FSDP]
    return {"rollout.slots": report.slots // 2} if report.slots // 2 >= least else None


def _pieces(key: str, now: int, sequences: int, over: float) -> dict[str, Any] | None:
    """The next number of pieces that divides `sequences`: what `over` asks for, if activations shrink alike."""
    numbers = [n for n in range(now + 1, sequences + 1) if sequences % n == 0]
    return {key: next((n for n in numbers if n >= 0.9 * over * now), numbers[-1])} if numbers else None


def _remat(c: ConfigDict) -> dict[str, Any] | None:
    return {"model.remat": "full"} if c.model.remat != "full" else None
