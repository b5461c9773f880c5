"""What a run looks at before it compiles anything."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from entropy_rl.data import PromptEncoder, Sources
from entropy_rl.rewards import Grader
from entropy_rl.rewards.verify import is_own
from entropy_rl.sampling import client
from entropy_rl.training.warmup import Lessons

if TYPE_CHECKING:
    from entropy_rl.model.transformer import ModelConfig


def check_problems(c: ConfigDict, sources: Sources, encoder: PromptEncoder, lessons: Lessons) -> None:
    """Looks at every row and makes the first batches, so that whatever does not fit is known early.

    Raises:
        ValueError: A row, prompt or worked solution that cannot be used.
    """
    sources.fit(encoder.fault, lessons.fault, c.data.bad_rows)
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
