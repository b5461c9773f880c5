"""The line that a terminal shows of a step."""

from collections.abc import Mapping
from typing import Any


def line_of(row: Mapping[str, Any], steps: int, seconds_left: float | None) -> str:
    """One line for a terminal, from a row as `RunLog.write` returns it.

    Args:
        row: of the step.
        steps: of the run.
        seconds_left: until its end; None: not known yet.

    >>> row = {"step": 12, "reward/mean": 0.512, "entropy/mean": 0.167, "throughput/rollout_tokens_per_s": None}
    >>> line_of(row, 60, 60.0)
    'step 12/60  reward 0.512  entropy 0.167  - tokens/s  1m00s left'
    """
    if not row["step"]:
        return f"step 0  {accuracy_text(row)}".rstrip()

    def show(key: str, form: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, form)

    parts = (
        f"step {row['step']}/{steps}",
        f"reward {show('reward/mean', '.3f')}",
        f"entropy {show('entropy/mean', '.3f')}",
        f"{show('throughput/rollout_tokens_per_s', '.0f')} tokens/s",
        "" if seconds_left is None else f"{duration(seconds_left)} left",
        accuracy_text(row),
    )
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """A time in two units, at least 0.

    >>> duration(61.2), duration(7700.0)
    ('1m01s', '2h08m')
    """
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s"


def accuracy_text(row: Mapping[str, Any]) -> str:
    """`chain_sum 41.0% [34.4, 47.9]` for every evaluation in a row of metrics; "" without one."""

    def text(name: str) -> str:
        accuracy, low, high = (row[f"eval/{name}/{key}"] for key in ("accuracy", "low", "high"))
        if accuracy is None:
            return f"{name} not scored"
        return f"{name} {accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"

    return "  ".join(text(k.split("/")[1]) for k in row if k.startswith("eval/") and k.endswith("/accuracy"))
