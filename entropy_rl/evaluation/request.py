"""What an evaluation is asked for: the configuration, the policies and the samples, made of a command's flags.

Nothing here imports jax: flags that do not fit are refused at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath
from ml_collections import ConfigDict

from entropy_rl.config.defaults import FIELDS
from entropy_rl.rules import Rule, check

if TYPE_CHECKING:
    from entropy_rl.evaluation.forks import Sweep


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate: see the flags with the same names.

    Attributes:
        steps: of run directories; empty: the newest checkpoint of each.
        forks: pairs of temperatures to sample at in place of the one; None: none.
        rollouts: record every token, up to log.rollouts_gb.
    """

    policies: Sequence[tuple[str, str]]  # (name in the tables, source)
    config: ConfigDict
    out: str
    k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    server: str = ""
    server_weights: str = ""
    steps: Sequence[int] = ()
    forks: "Sweep | None" = None
    rollouts: bool = True

    def chosen(self) -> list[tuple[str, str, int | None]]:
        """(name in the tables, source, step) of each policy, a run directory's steps one by one: "grpo@40"."""
        from entropy_rl.policy import is_run

        found: list[tuple[str, str, int | None]] = []
        for name, source in self.policies:
            if self.steps and is_run(source):
                found += [(f"{name}@{step}", source, step) for step in self.steps]
            else:
                found.append((name, source, None))
        return found


def configuration(workdir: str | None) -> ConfigDict:
    """The run directory's configuration over the defaults, which fill the fields that it lacks; None: the defaults.

    Raises:
        ValueError: The directory has no config.json.
    """
    from entropy_rl import config

    c = config.default()
    if workdir is not None:
        from entropy_rl.record import metrics

        path = epath.Path(workdir) / "config.json"
        if not path.exists():
            raise ValueError(f"--workdir: {path} is not there; give the directory of a run")
        saved = metrics.read_config(workdir)
        with c.unlocked():
            for section in ("mesh", "data", "rollout", "reward", "eval", "log"):
                c[section].update({name: v for name, v in saved.get(section, {}).items() if name in c[section]})
            c.seed, c.model.dtype = saved.get("seed", c.seed), saved.get("model", {}).get("dtype", c.model.dtype)
    return c


def sampled_by(
    evaluation: ConfigDict, k: int | None, temperature: float | None, top_p: float | None
) -> tuple[int, float, float]:
    """(samples per problem, their temperature, their top-p): the flags, or else the configuration's.

    Args:
        evaluation: The config section `eval`.
        k: --k; None: not given.
        temperature: --temperature.
        top_p: --top_p.

    Raises:
        ValueError: A flag is out of its range, or there are no samples for it to act on.
    """
    k = evaluation.samples if k is None else k
    for flag, value in (("temperature", temperature), ("top_p", top_p)):
        if value is None:
            continue
        rule = FIELDS[f"eval.{flag}"].rule
        assert isinstance(rule, Rule)
        check(f"--{flag}", value, rule)
        if not k:
            raise ValueError(
                f"--{flag}={value} with no samples has no effect: greedy responses ignore it; give --k too"
            )
    temperature = evaluation.temperature if temperature is None else temperature
    return k, temperature, evaluation.top_p if top_p is None else top_p


def with_tasks(c: ConfigDict, tasks: Sequence[str]) -> ConfigDict:
    """The configuration with these evaluation sets; a task of data.task or of a set keeps its settings.

    Raises:
        ValueError: Two sets would have the same name.
    """
    from entropy_rl.data.rows import short_name

    known = {part["task"]: part.get("settings", {}) for part in c.eval.sets.to_dict().values()}
    known[c.data.task] = c.data.settings.to_dict()
    sets = {}
    for task in tasks:
        name = short_name(task).replace(".", "_")
        if name in sets:
            raise ValueError(f"--tasks: two sets would be called {name!r}; evaluate them one at a time")
        sets[name] = {"task": task, "settings": known.get(task, {})}
    with c.unlocked():
        c.eval.sets = ConfigDict(sets)
    return c


def check_server(server: str, weights: str, models: Sequence[str], workdirs: Sequence[str]) -> None:
    """Refuses to ask a server for policies that it does not have.

    Raises:
        ValueError: It would not have them.
    """
    if weights and not server:
        raise ValueError(f"--server_weights={weights} without --server: there is no server to give them to")
    if server and not weights and (workdirs or len(models) > 1):
        raise ValueError(
            "--server alone evaluates the one --model that it serves; give it run directories, or several models, "
            "through a folder that both see: --server_weights"
        )


def check_steps(steps: Sequence[str], workdirs: Sequence[str]) -> list[int]:
    """The steps as numbers; every run directory has a checkpoint of each.

    Raises:
        ValueError: One is no step, or a run directory lacks its checkpoint.
    """
    from entropy_rl.record.checkpoint import Checkpoints

    text = ",".join(steps)
    if wrong := [step for step in steps if not (step.isascii() and step.isdigit())]:
        raise ValueError(f"--steps={text}: {wrong[0]!r} is no step; give whole numbers, such as --steps=0,40,80")
    numbers = [int(step) for step in steps]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--steps={text} has a step twice")
    if numbers and not workdirs:
        raise ValueError(f"--steps={text} without --workdir: only run directories have steps")
    for workdir in workdirs if numbers else ():
        there = Checkpoints(epath.Path(workdir) / "checkpoints").steps()
        if missing := [step for step in numbers if step not in there]:
            raise ValueError(
                f"--steps={text}: {workdir} has no checkpoint of step {missing[0]}, but of {there}; "
                "checkpoint.keep_every keeps them for good while a run is made"
            )
    return numbers


def names_of(sources: Sequence[str]) -> list[tuple[str, str]]:
    """(name, source) of each: the source's last part if that is unique, otherwise all of it.

    >>> names_of(["runs/a", "runs/b", "old/b"])
    [('a', 'runs/a'), ('runs/b', 'runs/b'), ('old/b', 'old/b')]
    """
    short = [s.rstrip("/").rpartition("/")[2] for s in sources]
    return [(n if short.count(n) == 1 else s, s) for n, s in zip(short, sources)]
