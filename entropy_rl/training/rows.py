"""The rows of metrics.jsonl and samples.jsonl, from what a step did.

Shapes: N prompts, G samples per prompt, B = N·G, T response positions. All on the host.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from entropy_rl import law
from entropy_rl.record.rollouts import pieces
from entropy_rl.rewards.votes import answer_entropy, distinct
from entropy_rl.runtime import distributed
from entropy_rl.stats import masked
from entropy_rl.token_transforms import ChainState
from entropy_rl.training.experience import Experience, degenerate
from entropy_rl.training.update import TokenRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def update_row(updates: Sequence[Mapping[str, Any]]) -> Row:
    """Means over a step's updates, of each metric over the updates that have it; skipped updates are only counted."""
    done = [u for u in updates if not u["grad/skipped"]] or updates
    keys = {k: None for u in done for k in u}
    row: Row = {k: float(np.mean([u[k] for u in done if k in u])) for k in keys}
    return row | {"grad/skipped": int(sum(u["grad/skipped"] for u in updates))}


def rollout_row(experience: Experience) -> Row:
    """A rollout's own metrics: rewards, the sampling policy's entropy over its own tokens, lengths."""
    rollout = experience.rollout
    entropy = rollout_entropy(rollout.logp, rollout.entropy, rollout.mask)
    return {
        **reward_row(experience),
        **{k: float(v) for k, v in jax.device_get(entropy).items()},
        **answers_row(experience),
        "length/mean": int(rollout.mask.sum()) / len(rollout.mask),
        "length/clipped_frac": float(1 - rollout.finished.mean()),
        "group/degenerate_frac": float(degenerate(experience).mean()),
    }


@jax.jit
def rollout_entropy(logp: jax.Array, entropy: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """The sampling policy's entropy over the tokens that it drew, f32[B, T] each -> f32[] each, nats."""
    return {
        "entropy/mean": masked.mean(entropy, mask),
        "entropy/response_mean": masked.response_mean(entropy, mask),
        "entropy/sampled": masked.mean(-logp, mask),
        "entropy/p80": masked.quantile(entropy, mask, 0.8),
        "entropy/frac_below_0.01": masked.fraction_below(entropy, mask, 0.01),
    }


def reward_row(experience: Experience) -> Row:
    """reward/mean, reward/std and a mean for every part, over the responses that were scored; null if none was."""

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean(dtype=np.float64)) if len(values) else None

    scored = experience.reward_B[experience.valid_B]
    return {
        "reward/mean": mean(scored),
        "reward/std": float(scored.std(dtype=np.float64)) if len(scored) else None,  # a float32 square may overflow
        "reward/unscored": int((~experience.valid_B).sum()),
        **{f"reward/{name}": mean(part[np.isfinite(part)]) for name, part in experience.parts.items()},
    }


def answers_row(experience: Experience) -> Row:
    """How much a problem's answers differ, the mean over the problems with an answer; null if there is none.

    `answers/distinct` is the number of different ones, `answers/entropy` their entropy, nats; see `rewards/votes.py`.
    Both depend on G.
    """
    G, answers = experience.samples, experience.answers
    groups = [some for i in range(0, len(answers), G) if any(some := answers[i : i + G])]
    if not groups:
        return {"answers/distinct": None, "answers/entropy": None}
    return {
        "answers/distinct": float(np.mean([distinct(some) for some in groups])),
        "answers/entropy": float(np.mean([answer_entropy(some) for some in groups])),
    }


def speed_row(first: Experience, experience: Experience, refill_tokens: int, seconds: Mapping[str, float]) -> Row:
    """Throughput in tokens/s, and where the time went.

    Args:
        first: the step's own rollout.
        experience: what the updates consumed, as whole sequences.
        refill_tokens: tokens sampled beyond the first rollout.
        seconds: of the parts "rollout", "reward", "train", "eval", and the "total" since the last row; `time/other_s`
            is the rest of it: prompts, metrics, logs, checkpoints.
    """
    spent = {part: seconds.get(part, 0.0) for part in ("rollout", "reward", "train", "eval")}
    sampled = int(first.rollout.mask.sum()) + refill_tokens
    consumed = int(experience.rollout.mask.sum()) + int(experience.prompts.mask_NxP.sum()) * experience.samples
    return {
        "throughput/rollout_tokens_per_s": sampled / spent["rollout"],
        "throughput/train_tokens_per_s": consumed / spent["train"],
        **{f"time/{part}_s": s for part, s in spent.items()},
        "time/other_s": seconds["total"] - sum(spent.values()),
    }


def state_row(names: Sequence[str], token_state: ChainState) -> Row:
    """`state/<transform>.<field>`: the numbers that the chain's transforms keep, such as an adaptive coefficient.

    Args:
        names: of the chain's transforms, in their order.
        token_state: the chain's state after the step's last update.
    """
    row: Row = {}
    for name, own in zip(names, jax.device_get(token_state.inner), strict=True):
        fields = own._asdict() if hasattr(own, "_asdict") else {}
        row |= {f"state/{name}.{field}": float(value) for field, value in fields.items() if np.ndim(value) == 0}
    return row


def law_row(history: Sequence[Row]) -> Row:
    """R = −a·exp(H) + b over the run so far, once there are points and spread enough (arXiv 2505.22617).

    `law/*` has the mean over tokens as H, `law/response_mean/*` the paper's eq. 5: the mean over responses of each
    response's mean.
    """
    row: Row = {}
    for prefix, key in (("law", "entropy/mean"), ("law/response_mean", "entropy/response_mean")):
        # a run of an earlier version may lack the second
        fitted = law.fit([r.get(key) for r in history], [r["reward/mean"] for r in history])
        row |= {f"{prefix}/a": fitted.a, f"{prefix}/b": fitted.b, f"{prefix}/ceiling": fitted.ceiling}
    return row


def recorded(
    experience: Experience,
    advantage_B: np.ndarray,
    records: Sequence[TokenRecord],
    fates: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[dict[str, Sequence[Any]], dict[str, np.ndarray], np.ndarray]:
    """A step's responses as `record/rollouts.py: RolloutLog.write` takes them: this process's share of them.

    Args:
        experience: the responses that the updates consumed, B of them.
        advantage_B: f32[B].
        records: of the step's updates; together they cover all responses once per turn of the method.
        fates: the names of `TokenRecord.fate`.
        tokenizer: makes text of the tokens.
    """
    rollout, G = experience.rollout, experience.samples
    update_R = np.concatenate([np.full(len(r.logp), i) for i, r in enumerate(records)])
    row_R = np.arange(len(update_R)) % len(experience.texts)  # a later turn has the same responses again
    mine_R = np.array([distributed.mine(b) for b in row_R.tolist()])
    rows = row_R[mine_R]
    tokens, mask = rollout.tokens[rows], rollout.mask[rows]
    reward = np.where(experience.valid_B, experience.reward_B, np.nan)
    columns: dict[str, Sequence[Any]] = {
        "update": update_R[mine_R],
        "prompt": experience.prompts.uid_N[rows // G],
        "sample": rows % G,
        "question": [experience.owner(b).question for b in rows],
        "text": [experience.texts[b] for b in rows],
        "answer": [experience.answers[b] for b in rows],
        "reward": reward[rows],
        "advantage": advantage_B[rows],
        "length": mask.sum(axis=1),
        "finished": rollout.finished[rows],
        **{f"reward/{name}": part[rows] for name, part in experience.parts.items()},
    }
    found = {name: np.concatenate([getattr(r, name) for r in records])[mine_R] for name in TokenRecord._fields}
    named = np.array(fates, object)[found.pop("fate")]
    return columns, found | {"id": tokens, "token": pieces(tokens, tokenizer), "fate": named}, mask


def sample_rows(step: int, n: int, experience: Experience, advantage_B: np.ndarray) -> list[Row]:
    """The first n responses of a step, for samples.jsonl."""
    rollout = experience.rollout
    return [
        {
            "step": step,
            "question": experience.owner(b).question,
            "response": experience.texts[b],
            "reward": experience.reward_B[b] if experience.valid_B[b] else None,
            "advantage": advantage_B[b],
            "length": rollout.mask[b].sum(),
            "finished": rollout.finished[b],
            "entropy": float(rollout.entropy[b].sum()) / max(1, int(rollout.mask[b].sum())),
        }
        for b in range(min(n, len(experience.texts)))
    ]
