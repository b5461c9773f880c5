"""The responses that a run recorded first, scored again by its later policies: where did training move the entropy?

N tokens of R responses; P prompt positions, T response positions, S = P + T.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from entropy_rl import policy as policy_lib
from entropy_rl.data import Problem, PromptEncoder, Sources
from entropy_rl.policy import Policy
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.report import tokens
from entropy_rl.report.figure import Figure, by, colored, column, legend, step_axis
from entropy_rl.report.tokens import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TOP = 0.2  # the share of the positions that are compared (arXiv 2506.01939)
_GROUPS = 20  # of 5% each
_BATCH_TOKENS = 8192  # scored at once


class Rescored(NamedTuple):
    """The entropy of the same tokens under several policies.

    Attributes:
        start: what the others are compared with, in words.
        base: f32[N], nats, under that policy.
        later: step -> f32[N], under the policy after that step.
    """

    start: str
    base: np.ndarray
    later: dict[int, np.ndarray]


def overlap(base: np.ndarray, later: np.ndarray, share: float = TOP) -> float:
    """The share of the highest positions of one policy that are among the highest of the other too.

    Both sets have ⌈share · N⌉ positions; of equal entropies the earlier positions are taken. By chance it would be
    `share`. NaN if there are no tokens.

    >>> overlap(np.array([5.0, 4.0, 1.0, 0.0]), np.array([1.0, 4.0, 5.0, 0.0]), 0.5)
    0.5
    """
    n = int(np.ceil(share * base.size))
    first, second = (np.argsort(-x, kind="stable")[:n] for x in (base, later))
    return np.intersect1d(first, second).size / n if n else float("nan")


def by_percentile(base: np.ndarray, later: np.ndarray, groups: int = _GROUPS) -> list[dict[str, float]]:
    """The mean change of entropy of the tokens in each group of equal size, by their entropy under the first policy.

    >>> [float(row["mean change, nats"]) for row in by_percentile(np.array([3.0, 1.0]), np.array([3.5, 1.0]), 2)]
    [0.0, 0.5]
    """
    order = np.argsort(base, kind="stable")
    found = []
    for i, part in enumerate(np.array_split(order, groups)):
        if part.size:
            before, after = (x[part].astype(np.float64).mean() for x in (base, later))
            row = {"from, %": 100 * i / groups, "to, %": 100 * (i + 1) / groups, "tokens": part.size}
            found.append(row | {"mean before, nats": before, "mean change, nats": after - before})
    return found


def rescore(workdir: str) -> Rescored:
    """Scores the responses of the first recorded step with the policy of every checkpoint that is kept.

    The start is the earliest checkpoint, if it is from before these responses were trained on; otherwise it is the
    entropy that the run recorded: that under the policy which each one's update started from.

    Raises:
        ValueError: The run recorded no rollouts, or kept no checkpoint that could be compared with the start.
    """
    recorded, kept = tokens.steps(workdir), Checkpoints(epath.Path(workdir) / "checkpoints").steps()
    if not recorded:
        raise ValueError(f"--rescore: {workdir} has no recorded rollouts; set log.rollouts when it is trained")
    step = tokens.once(tokens.read(workdir, recorded[0]))
    entropy = {number: score(workdir, number, step) for number in kept}
    if kept and kept[0] < step.step:
        start, base = f"step {kept[0]}", entropy.pop(kept[0])
    else:
        start, base = f"as recorded in step {step.step}", step.values["entropy"]
    if not entropy:
        raise ValueError(
            f"--rescore: {workdir} keeps the checkpoints of steps {kept}, and nothing later to compare {start} with; "
            "set checkpoint.keep_every when it is trained"
        )
    return Rescored(start, base, entropy)


def score(workdir: str, number: int, step: Step) -> np.ndarray:
    """f32[N]: the entropy of a recorded step's tokens under the policy of a checkpoint, at the sampling temperature."""
    c, policy = policy_lib.config_of(workdir), policy_lib.load(workdir, step=number)
    examples = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills).train.train if c.data.few_shot else None
    encoder = PromptEncoder(c.data, policy.tokenizer, examples, policy.cfg.vocab_size)
    prompts_RxP, mask_RxP = encoder([Problem(row["prompt"], row["question"], "", "") for row in step.rows])
    inside_RxT = np.arange(max(step.lengths, default=0)) < step.lengths[:, None]
    ids_RxT = np.zeros(inside_RxT.shape, np.int32)
    ids_RxT[inside_RxT] = step.id
    tokens_RxS, mask_RxS = np.hstack([prompts_RxP, ids_RxT]), np.hstack([mask_RxP, inside_RxT])
    _, entropy_RxS = score_rows(policy, tokens_RxS, mask_RxS, float(c.rollout.temperature))
    return entropy_RxS[:, prompts_RxP.shape[1] :][inside_RxT]


def score_rows(
    policy: Policy, tokens_RxS: np.ndarray, mask_RxS: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(logp, entropy) f32[R, S] of rows, a few at a time and all in one shape."""
    R, S = tokens_RxS.shape
    rows = max(1, min(R, _BATCH_TOKENS // max(1, S)))
    filled = -R % rows
    tokens_RxS, mask_RxS = (np.pad(x.astype(np.int32), ((0, filled), (0, 0))) for x in (tokens_RxS, mask_RxS))
    found = [
        policy.score(tokens_RxS[i : i + rows], mask_RxS[i : i + rows], temperature) for i in range(0, R + filled, rows)
    ]
    logp, entropy = (np.concatenate([np.asarray(some[i]) for some in found])[:R] for i in range(2))
    return logp, entropy


def figures(rescored: Mapping[str, Rescored]) -> list[Figure]:
    """The change of entropy by percentile, and the overlap, of each run."""
    return [_changes(rescored), _overlaps(rescored)]


def _changes(rescored: Mapping[str, Rescored]) -> Figure:
    table: list[dict[str, Any]] = [
        {"run": name, "start": found.start, "step": step, **row}
        for name, found in rescored.items()
        for step, later in found.later.items()
        for row in by_percentile(found.base, later)
    ]

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        last = [row for row in table if row["step"] == max(rescored[row["run"]].later)]
        color = colored(list(rescored))
        for i, (name, rows) in enumerate(by(last, "run")):
            width = 100 / _GROUPS * 0.8 / len(rescored)
            axes.bar(
                column(rows, "from, %") + (i + 0.6) * width,
                column(rows, "mean change, nats"),
                width,
                color=color[name],
                label=f"{name}, step {rows[0]['step']}",
            )
        axes.axhline(0, color="gray", lw=1)
        axes.set(xlabel="percentile of the token's entropy at the start", ylabel="mean change, nats")
        legend(axes, len(rescored) + 1)

    return Figure(
        "entropy_by_percentile",
        "Which tokens' entropy changed",
        "The responses of the first recorded step under the last kept policy: how the mean entropy of the tokens in "
        "each twentieth, by their entropy at the start, has changed. In the paper tokens that had little hardly "
        "change, and those that had much change most.",
        "2506.01939, figure 4",
        table,
        draw,
        (8.0, 3.4),
    )


def _overlaps(rescored: Mapping[str, Rescored]) -> Figure:
    table: list[dict[str, Any]] = [
        {"run": name, "start": found.start, "step": step, "tokens": later.size}
        | {"overlap": overlap(found.base, later), "by chance": TOP}
        | {"mean entropy at the start": found.base.mean(dtype=float), "mean entropy": later.mean(dtype=float)}
        for name, found in rescored.items()
        for step, later in found.later.items()
    ]

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        color = colored(list(rescored))
        for name, rows in by(table, "run"):
            axes.plot(column(rows, "step"), column(rows, "overlap"), marker="o", color=color[name], label=name)
        axes.axhline(TOP, color="gray", ls="--", lw=1)
        axes.set(ylabel="overlap", ylim=(0, 1.02))
        step_axis(axes)
        legend(axes, len(rescored))

    return Figure(
        "entropy_overlap",
        "Do the forks stay where they were?",
        "The share of the 20% of the positions with the highest entropy at the start that are still among the highest "
        "20% under a later policy; the dashed line is chance. In the paper it stays above 86% to the end of training.",
        "2506.01939, table 1",
        table,
        draw,
        (7.0, 3.2),
    )
