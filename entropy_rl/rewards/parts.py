"""The parts of the reward: which of them count, their values for a batch of responses, and their weighted sum.

Shapes: B responses. All on the host. `reward` is the config section `reward` throughout. The part "answer" is always
the verifier's verdict, so that `reward/answer` is the true accuracy. If `reward.kind` puts a control in its place, the
part "control" has its weight, and the verdict is a part that does not count.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from entropy_rl.rewards.controls import PART
from entropy_rl.rewards.grader import Grader, Item

LARGEST = 1e15  # of a reward: a gradient that is this many times larger can still be squared and summed in float32
_FROM_LENGTH = ("length", "overlong")  # parts that count tokens; all others read the text


def weights(reward: ConfigDict) -> dict[str, float]:
    """The parts of the reward whose weight is not 0, with their weights."""
    own = {name: part["weight"] for name, part in reward.own.to_dict().items()}
    found = {name: weight for name, weight in (reward.weights.to_dict() | own).items() if weight}
    if reward.kind != "answer" and "answer" in found:
        found[PART] = found.pop("answer")
    return found


def verdicts(
    reward: ConfigDict, grader: Grader, items: Sequence[Item], *, local: bool = False
) -> dict[str, np.ndarray]:
    """Grades responses for every part that reads their text.

    Args:
        reward: the config section.
        grader: runs the verifiers.
        items: B (kind, response, entry) triples, whose kind judges the part "answer".
        local: as in `Grader.grade`.

    Returns:
        Part -> f32[B], NaN where a response could not be scored.

    Raises:
        RuntimeError: If no response could be scored for some part; never with `local`.
        ValueError: If a kind is unknown or its library is missing, or if a score is beyond ±LARGEST.
    """
    own = reward.own.to_dict()
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys([*(["answer"] if reward.kind != "answer" else []), *weights(reward)]):
        if name in (*_FROM_LENGTH, PART):
            continue
        asked = items
        if name != "answer":
            kind = "format" if name == "format" else own[name]["function"]
            asked = [(kind, text, entry) for _, text, entry in items]
        scores = grader.grade(asked, local=local)
        given = np.array([np.nan if score is None else score for score in scores], np.float64)
        found[name] = _usable(given, f"reward part {name!r}").astype(np.float32)
    return found


def _usable(reward_B: np.ndarray, what: str) -> np.ndarray:
    """The rewards, none of which is beyond ±LARGEST; NaN if not scored.

    Raises:
        ValueError: One is; names `what`, the response and its reward.
    """
    if (huge := np.flatnonzero(np.abs(reward_B) > LARGEST)).size:
        b = int(huge[0])
        raise ValueError(
            f"{what}: {float(reward_B[b]):g} for response {b} of {len(reward_B)}; a reward must be within "
            f"±{LARGEST:g}, since gradients overflow float32 beyond it: give it a smaller scale"
        )
    return reward_B


def with_lengths(
    reward: ConfigDict, found: dict[str, np.ndarray], length_B: np.ndarray, max_tokens: int
) -> dict[str, np.ndarray]:
    """Adds the parts that count tokens to those that are known.

    Args:
        reward: the config section.
        found: the result of `verdicts`, and the control if there is one.
        length_B: tokens of each response.
        max_tokens: the largest length of a response (`rollout.max_tokens`).

    Returns:
        Part -> f32[B], every part that counts, in the order of `weights`, then the verdict if it does not count.
    """
    parts = {}
    for name in weights(reward):
        if name == "length":
            parts[name] = (length_B / max_tokens).astype(np.float32)
        elif name == "overlong":
            parts[name] = soft_overlong(length_B, max_tokens, reward.overlong_cache)
        else:
            parts[name] = found[name]
    return parts | {name: part for name, part in found.items() if name not in parts}


def soft_overlong(length_B: np.ndarray, max_tokens: int, cache: int) -> np.ndarray:
    """f32[B]: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).

    It is 0 up to max_tokens − cache tokens and falls linearly from there to −1 at max_tokens.

    >>> soft_overlong(np.array([15, 18, 20]), max_tokens=20, cache=5).tolist()
    [0.0, -0.6000000238418579, -1.0]
    """
    return np.clip((max_tokens - cache - np.asarray(length_B, np.float32)) / cache, -1.0, 0.0).astype(np.float32)


def total(reward: ConfigDict, parts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum of the parts.

    Args:
        reward: the config section.
        parts: part -> f32[B], NaN where not scored.

    Returns:
        (reward f32[B], valid bool[B]). A response with a part that counts and could not be scored has reward 0 and is
        not valid.

    Raises:
        ValueError: A weighted sum is beyond ±LARGEST.
    """
    weight = weights(reward)
    counted = {name: part for name, part in parts.items() if name in weight}
    valid = np.all([np.isfinite(part) for part in counted.values()], axis=0)
    with np.errstate(over="ignore"):  # an infinity is refused just below
        summed = sum(np.float32(weight[name]) * np.nan_to_num(part) for name, part in counted.items())
    return _usable(np.where(valid, summed, 0.0), "reward.weights: the weighted sum").astype(np.float32), valid
