"""Alarms: what may go wrong with a run, read off its rows alone; each begins once, and ends.

They are functions of the rows of metrics.jsonl, so the loop, the panel and the report find the same ones, and a resumed
run knows which have begun. docs/metrics.md lists them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]

START = 3  # rows whose mean is the start
RECENT = 5  # rows whose mean is the present, and for which an alarm's condition must not hold before the alarm ends
FLAT = 10  # rows that are compared with as many before them, to see whether the reward still rises

COLLAPSE, EXPLOSION, FAR = 0.2, 2.0, 0.5  # shares of the start's entropy; nats above it
TRUNCATED, DEGENERATE = 0.25, 0.8  # shares of the responses, of the groups
GAP = 0.01  # nats, KL(sampler ‖ trainer) per token


class Kind(NamedTuple):
    """What an alarm watches for.

    Attributes:
        when: the condition, in words.
        look: what to look at, and what helps.
        sign: (the first rows, the latest rows) -> the numbers that show it, in words; "" if it does not hold.
    """

    when: str
    look: str
    sign: Callable[[Sequence[Row], Sequence[Row]], str]


class Alarm(NamedTuple):
    """An alarm that has begun or ended.

    Attributes:
        step: at which it did.
        name: a key of `KINDS`.
        begins: whether it began.
        text: the sentence for the log.
    """

    step: int
    name: str
    begins: bool
    text: str


def _mean(rows: Sequence[Row], key: str) -> float:
    """The mean of a metric over the rows that have it; NaN, which no condition holds for, if none has."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else float("nan")


def _now(latest: Sequence[Row], key: str) -> float:
    """The mean of a metric over the RECENT rows; NaN before there are as many."""
    return _mean(latest[-RECENT:], key) if len(latest) >= RECENT else float("nan")


def _rises(rows: Sequence[Row]) -> bool:
    """Whether the reward of the last FLAT rows is above that of the FLAT before by more than two standard errors.

    With fewer rows it counts as rising.
    """
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    if len(rewards) < 2 * FLAT:
        return True
    before, after = np.split(np.array(rewards[-2 * FLAT :], float), 2)
    error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / FLAT)
    return bool(after.mean() - before.mean() > 2 * error)


def _collapse(first: Sequence[Row], latest: Sequence[Row]) -> str:
    start, now = _mean(first, "entropy/mean"), _now(latest, "entropy/mean")
    if not now < COLLAPSE * start or _rises(latest):
        return ""
    return f"entropy {now:.3g} nats, {now / start:.0%} of the start's {start:.3g}, and the reward no longer rises"


def _explosion(first: Sequence[Row], latest: Sequence[Row]) -> str:
    start, now = _mean(first, "entropy/mean"), _now(latest, "entropy/mean")
    return f"entropy {now:.3g} nats, from {start:.3g}" if now > EXPLOSION * start and now > start + FAR else ""


def _empty_mask(first: Sequence[Row], latest: Sequence[Row]) -> str:
    if latest[-1].get("tokens/kept_frac") != 0:
        return ""
    empty = [k[6:-5] for k, v in latest[-1].items() if k.startswith("state/") and k.endswith(".kept") and v == 0]
    return f"tokens/kept_frac is 0{': ' + ', '.join(empty) if empty else ''}"


def _share(key: str, bound: float, name: str) -> Callable[[Sequence[Row], Sequence[Row]], str]:
    """The sign that a share, as a mean over the recent rows, is at or above a bound."""

    def sign(first: Sequence[Row], latest: Sequence[Row]) -> str:
        now = _now(latest, key)
        return f"{now:.0%} of the {name}" if now >= bound else ""

    return sign


def _gap(first: Sequence[Row], latest: Sequence[Row]) -> str:
    now = _now(latest, "sampler/gap_kl")
    return f"KL(sampler ‖ trainer) is {now:.3g} nats per token" if now > GAP else ""


KINDS: dict[str, Kind] = {
    "collapse": Kind(
        f"entropy (mean of the last {RECENT} steps) below {COLLAPSE:.0%} of the start (of the first {START}), while "
        f"the reward of the last {FLAT} steps is not above that of the {FLAT} before by two standard errors",
        "cov/mean and entropy/p80: what there was to trade is spent. A method that holds the entropy (clip_cov, "
        "kl_cov, adaptive_entropy, clip_higher), begun from an earlier checkpoint",
        _collapse,
    ),
    "explosion": Kind(
        f"entropy (mean of the last {RECENT} steps) above {EXPLOSION:g} times the start and {FAR} nats above it",
        "samples.jsonl for text without sense, grad/norm, length/clipped_frac. A smaller bonus or penalty, a lower "
        "optim.lr, a target (adaptive_entropy)",
        _explosion,
    ),
    "empty_mask": Kind(
        "the method's masks stopped every token of the step, or no token was valid",
        "state/<transform>.kept, length/clipped_frac under reward.mask_truncated. A larger share or a wider interval",
        _empty_mask,
    ),
    "truncation": Kind(
        f"{TRUNCATED:.0%} of the responses or more are cut at rollout.max_tokens (mean of the last {RECENT} steps)",
        "length/mean, and samples.jsonl for repetition. A larger rollout.max_tokens, reward.weights.overlong, "
        "reward.mask_truncated",
        _share("length/clipped_frac", TRUNCATED, "responses are cut at the limit"),
    ),
    "sampler_gap": Kind(
        f"KL(sampler ‖ trainer) above {GAP} nats per token at equal parameters (mean of the last {RECENT} steps)",
        "sampler/gap_max_abs; model.dtype, the server's precision and whether it has the newest weights. "
        "algo.correction or algo.is_cap",
        _gap,
    ),
    "degenerate": Kind(
        f"{DEGENERATE:.0%} of the groups or more have no gradient: all right, all wrong or not scored (mean of the "
        f"last {RECENT} steps)",
        "reward/answer: near 0 the problems are too hard, near 1 too easy; reward/unscored. Other problems, more "
        "samples per prompt, rollout.refills",
        _share("group/degenerate_frac", DEGENERATE, "groups have no gradient"),
    ),
}


class Watch:
    """Follows the rows of a run.

    Attributes:
        active: the alarms that have begun and not ended, by name.

    Args:
        rows: of the steps so far, in order.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self.active: dict[str, Alarm] = {}
        self._first: list[Row] = []
        self._latest: deque[Row] = deque(maxlen=2 * FLAT)
        self._absent: dict[str, int] = {}  # alarm -> rows since its condition held
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> list[Alarm]:
        """The alarms that begin or end with the row of the next step; none with that of step 0."""
        if not row["step"]:
            return []
        if len(self._first) < START:
            self._first.append(row)
        self._latest.append(row)
        found = []
        for name, kind in KINDS.items():
            sign = kind.sign(self._first, list(self._latest))
            self._absent[name] = 0 if sign else self._absent.get(name, 0) + 1
            if sign and name not in self.active:
                begun = Alarm(row["step"], name, True, f"alarm {name}: {sign}. Look at {kind.look}")
                found.append(begun)
                self.active[name] = begun
            elif name in self.active and self._absent[name] >= RECENT:
                del self.active[name]
                found.append(Alarm(row["step"], name, False, f"alarm {name} is over"))
        return found


def alarms(rows: Iterable[Row]) -> list[Alarm]:
    """All alarms of a run, as they began and ended, from its rows in order.

    >>> rows = [{"step": i, "tokens/kept_frac": float(i != 2)} for i in range(1, 9)]
    >>> [(alarm.step, alarm.name, alarm.begins) for alarm in alarms(rows)]
    [(2, 'empty_mask', True), (7, 'empty_mask', False)]
    """
    watch = Watch()
    return [alarm for row in rows for alarm in watch.see(row)]
