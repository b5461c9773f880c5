"""What a run looks at before it compiles anything."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
from absl import logging
from ml_collections import ConfigDict

from entropy_rl.data import Problem, PromptEncoder, Sources
from entropy_rl.data.source import Fault, first_fault, hash_text
from entropy_rl.rewards import Grader, gold_problems
from entropy_rl.rewards.verify import is_own
from entropy_rl.runtime import distributed
from entropy_rl.sampling import client
from entropy_rl.training.warmup import Lessons

if TYPE_CHECKING:
    from entropy_rl.model.transformer import ModelConfig

_MOST_GOLDS = 20_000  # different right answers that are graded; of more, a sample that depends on the answers alone
_GOLD_CHUNK = 256  # right answers that are graded together
_GOLD_WORKERS = 8  # processes at least, as far as there are CPUs: nothing else runs yet


def check_problems(c: ConfigDict, sources: Sources, encoder: PromptEncoder, lessons: Lessons) -> None:
    """Looks at every row and makes the first batches, so that whatever does not fit is known early.

    Raises:
        ValueError: A row, prompt, right answer or worked solution that cannot be used.
    """
    gold_fault = check_golds(sources.stored(), sources.kinds(), c.reward, c.data.bad_rows)
    sources.fit(first_fault(encoder.fault, gold_fault), lessons.fault, c.data.bad_rows)
    encoder(sources.train.train(1, c.rollout.prompts))
    for problems in sources.evals.values():
        encoder(problems)
    if c.warmup.updates:
        lessons.batch(0)


def check_functions(c: ConfigDict) -> None:
    """Has a grader import every function that the configuration names as module:function; each is called once.

    It is found where training will look for it, in the graders' processes and not in this one.

    Raises:
        ValueError: A module or function is not there; names the key.
    """
    named = {f"reward.own.{name}.function": part["function"] for name, part in c.reward.own.to_dict().items()}
    settings = {"data.settings": c.data.settings.to_dict()}
    for section, parts in (("data.mixture", c.data.mixture), ("eval.sets", c.eval.sets)):
        settings |= {f"{section}.{name}.settings": p.get("settings", {}) for name, p in parts.to_dict().items()}
    kinds = {f"{key}.kind": str(fields.get("kind", "")) for key, fields in settings.items()}
    for key, function in (named | {key: kind for key, kind in kinds.items() if is_own(kind)}).items():
        try:
            with Grader(1, c.reward.cpu_seconds) as grader:
                grader.grade([(function, "", "")], local=True)
        except ValueError as error:
            raise ValueError(f"{key}={function!r}: {error}") from error


def check_golds(problems: Sequence[Problem], kinds: Sequence[str], reward: ConfigDict, bad_rows: str) -> Fault:
    """Grades every right answer of the files against itself, in the graders' processes and within their limits.

    Equal answers are graded once, and of more than 20,000 different ones a sample, the same in every run. The processes
    of a run share the work. If bad rows are an error, the rest is not looked at once some are found: a file whose
    answers never end would take their time limit for each of them.

    Args:
        problems: those of the files and data sets.
        kinds: every kind of verifier that the run will use, those of procedural tasks and functions of the user's own
            included: each is tried once, so that one that does not exist is known.
        reward: the config section `reward`.
        bad_rows: "error" or "skip" (`data.bad_rows`).

    Returns:
        problem -> the reason why nothing can be graded with its right answer, or None.

    Raises:
        ValueError: A kind that does not exist, or whose library is not installed.
    """
    golds = {_gold(p): p for p in problems}
    faults: dict[tuple[str, str], str] = {}
    workers = max(reward.workers, min(_GOLD_WORKERS, os.cpu_count() or 1))
    with Grader(workers, reward.cpu_seconds) as grader:
        for kind in kinds:
            try:
                grader.grade([(kind, "", "")], local=True)
            except (ValueError, ImportError) as error:
                raise ValueError(f"data.settings.kind={kind!r}, or a task of that name: {error}") from None
        keys = sorted(golds)
        if len(keys) > _MOST_GOLDS:
            keys = sorted(keys, key=lambda key: hash_text(key[1], 8))[:_MOST_GOLDS]
        if len(keys) > _GOLD_CHUNK:
            logging.info("grading %d of %d different right answers against themselves", len(keys), len(golds))

        def work(some: list[tuple[str, str]]) -> list[str | None]:
            return gold_problems(grader, [(golds[key].entry, golds[key].kind) for key in some])

        for i in range(0, len(keys), _GOLD_CHUNK):
            part = keys[i : i + _GOLD_CHUNK]
            found = distributed.share(part, work)
            faults |= {key: fault for key, fault in zip(part, found, strict=True) if fault}
            if faults and bad_rows == "error":
                break
    return lambda problem: faults.get(_gold(problem))


def _gold(problem: Problem) -> tuple[str, str]:
    """What identifies a right answer: its kind, and the answer or entry as text."""
    return problem.kind, json.dumps(problem.entry, sort_keys=True, default=str)


def check_length(c: ConfigDict, model_config: "ModelConfig") -> None:
    """Refuses prompts and responses that do not fit into the model's positions.

    Raises:
        ValueError: They do not fit.
    """
    if c.data.max_prompt_len + c.rollout.max_tokens > model_config.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {model_config.max_positions} positions"
        )


def check_server(rollout: ConfigDict, sources: Sources, encoder: PromptEncoder) -> None:
    """Asks the server of `rollout.server`, if there is one, for a token.

    Raises:
        ValueError: The run has several processes, or the server cannot be used.
    """
    if not rollout.server:
        return
    if jax.process_count() > 1:
        raise ValueError(f"rollout.server={rollout.server!r} serves a run of one process; set it to '' on a pod")
    prompt, mask = encoder(sources.train.train(1, 1))
    server = client.connect(rollout.server, rollout.server_weights)
    server.check(prompt[mask > 0].tolist(), rollout.temperature)


def check_data(before: Mapping[str, str], now: Mapping[str, str], force: bool) -> None:
    """Refuses to resume a run with other data than it started with, unless it is forced to.

    Args:
        before: the digests of the run's sources.
        now: the digests now.
        force: resume anyway.

    Raises:
        ValueError: A digest differs.
    """
    changed = [f"{k}: {before.get(k)} in the run, {now.get(k)} now" for k in now if before.get(k) != now[k]]
    if changed and not force:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"data.task: the run was started with other data:\n  {listed}\n"
            "Put the old data back, start in another workdir, or force the change"
        )
