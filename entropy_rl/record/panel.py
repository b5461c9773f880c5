"""The live panel: where a run stands, at the bottom of a terminal, with the log's lines above it.

It is drawn once per row and once per line of the log, by the thread that writes them. The cursor stays visible and the
screen is the usual one, so that a terminal is as it was even after a SIGKILL.
"""

import logging as python_logging
import os
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel as Frame
from rich.table import Table
from rich.text import Text

from entropy_rl.record.alarms import START, Alarm
from entropy_rl.record.lines import accuracy_text, duration

_BARS = "▁▂▃▄▅▆▇█"
_OBEYED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode's controls, formats and separators of lines
_WIDTH = 32  # of a curve, characters
_SHOWN = 300  # of a question and of a response, characters


class View(NamedTuple):
    """What the panel shows.

    Attributes:
        rows: of the run so far, without step 0; at least one.
        steps: of the run.
        seconds_left: until its end; None: not known.
        alarms: that have begun and not ended.
        sample: a response, as `training/rows.py: sample_rows` has it; None: there is none.
    """

    rows: Sequence[Mapping[str, Any]]
    steps: int
    seconds_left: float | None = None
    alarms: Collection[Alarm] = ()
    sample: Mapping[str, Any] | None = None


def fits(stream: Any) -> bool:
    """Whether a stream is a terminal that the panel can be drawn on: not a file, a notebook or a dumb terminal."""
    return (
        stream.isatty()
        and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        and (getattr(stream, "encoding", None) or "").lower().startswith("utf")
    )


def curve(values: Sequence[float | None]) -> str:
    """A curve of block characters, from the smallest to the largest value.

    >>> curve([0.0, 1.0, None, 2.0]), curve([0.5, 0.5]), curve([])
    ('▁▅█', '▁▁', '')
    """
    known = np.array([v for v in values if v is not None], float)
    if not known.size:
        return ""
    means = np.array([part.mean() for part in np.array_split(known, min(_WIDTH, known.size))])
    spread = np.ptp(means) or 1.0
    heights = np.round((means - means.min()) / spread * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[i] for i in heights)


def plain(text: str, most: int = _SHOWN) -> str:
    r"""A model's text in one line, without anything that a terminal would obey.

    >>> plain("a\n b\x1b[2Jc\u202e")
    'a⏎ b�[2Jc�'
    """
    text = text[:most] + ("…" if len(text) > most else "")
    text = text.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", " ")
    return "".join("�" if unicodedata.category(ch) in _OBEYED else ch for ch in text)


def drawn(view: View) -> Frame:
    """The panel."""
    row, rows = view.rows[-1], view.rows
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)

    def show(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    start = [r["entropy/mean"] for r in rows[:START] if r.get("entropy/mean") is not None]
    left = ""
    if start and row.get("entropy/mean") is not None and np.mean(start) > 0:
        left = f"  {row['entropy/mean'] / np.mean(start):.0%} of the start"
    ceiling = show("law/ceiling", ".3f")
    speed = f"{show('throughput/rollout_tokens_per_s', '.0f')} tokens/s"
    time_left = "" if view.seconds_left is None else f"  {duration(view.seconds_left)} left"
    table.add_row("reward", f"{show('reward/mean', '.3f')}  forecast ceiling {ceiling}", _curve(rows, "reward/mean"))
    table.add_row("entropy", f"{show('entropy/mean', '.3f')} nats{left}", _curve(rows, "entropy/mean"))
    if evaluated := next((r for r in reversed(rows) if accuracy_text(r)), None):
        table.add_row("held out", f"{plain(accuracy_text(evaluated))}  at step {evaluated['step']}")
    table.add_row("speed", f"{speed}{time_left}")
    parts: list[Any] = [table]
    for alarm in view.alarms:
        parts.append(Text(f"since step {alarm.step}  {alarm.text.partition('. Look at')[0]}", style="bold red"))
    if view.sample is not None:
        reward = view.sample["reward"]
        shown = "not scored" if reward is None else f"reward {reward:.3g}"
        parts.append(Text(f"{plain(view.sample['question'])} ", style="dim", no_wrap=True, overflow="ellipsis"))
        parts.append(Text(f"→ {plain(view.sample['response'])}  ({shown})"))
    return Frame(Group(*parts), title=f"step {row['step']}/{view.steps}", title_align="left")


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> Text:
    return Text(curve([r.get(key) for r in rows]), style="cyan")


class Panel:
    """The panel in this process's terminal, stderr, from the first `show` to `close`."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._streams: list[tuple[python_logging.StreamHandler[Any], Any]] = []

    def show(self, view: View) -> None:
        """Draws the panel anew."""
        if self._live is None:
            self._open()
        assert self._live is not None
        self._live.update(drawn(view), refresh=True)

    def _open(self) -> None:
        console = Console(stderr=True)
        self._live = Live(
            console=console,
            auto_refresh=False,  # no thread: the graders' nursery and a stop's thread are enough
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        handler = logging.get_absl_handler().python_handler
        writes_here = handler.stream is sys.stderr
        self._live.start()  # sys.stderr now prints above the panel
        console.show_cursor(True)
        if writes_here:
            self._streams.append((handler, handler.setStream(sys.stderr)))

    def close(self) -> None:
        """Leaves the last panel in the terminal, and the log as it was."""
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
