"""The words of metrics.jsonl: its fixed keys, what a key means, and docs/metrics.md, which shows the whole table.

python -m entropy_rl.record.words > docs/metrics.md
"""

import functools
import re
from collections.abc import Iterable

from entropy_rl.record.alarms import KINDS, RECENT
from entropy_rl.record.word_table import WORDS, Word

METRIC_KEYS = tuple(word.key for words in WORDS.values() for word in words if word.always)

_INTRODUCTION = """\
# Every number of a run

A run writes one line of JSON per step into `metrics.jsonl`. This page says what each key means: its unit, how it is
computed, what moves it, and where a paper shows it. It is made from the table in `entropy_rl/record/word_table.py`, and
a test holds that every key that a run writes is in it. At its end are the alarms that are read off these numbers.

A name in angle brackets stands for any: `eval/<set>/accuracy` is there once per evaluation set. Keys in **bold** are in
every row, and null where they were not measured. N is the number of valid response tokens of an update, G that of the
responses to one problem; H is the entropy of a token's distribution in nats, A the advantage, η the learning rate and
π_old the policy that sampled. A key that has one value per update is the mean over the step's updates.
"""

_ALARMS = f"""\
## Alarms

The log of a run names what may be going wrong, once when it begins and once when it ends: when its condition has not
held for {RECENT} steps. A resumed run does not repeat what the run before it has named. The alarms are functions of the
rows alone (`entropy_rl.record.alarms.alarms`), so they can be had of any run. An alarm changes nothing.

| alarm | when | what to look at, and what helps |
|---|---|---|
"""


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], Word], ...]:
    """The families last: `state/repo.coef` is a word itself before it could be one of a family."""
    words = sorted((word for words in WORDS.values() for word in words), key=lambda word: "<" in word.key)
    return tuple((re.compile(re.sub(r"<\w+>", "[^/]+", re.escape(word.key))), word) for word in words)


def word_of(key: str) -> Word | None:
    """The word for a key of metrics.jsonl; None: there is none.

    >>> word_of("eval/gsm8k/pass@8").unit, word_of("entropy/meen")
    ('share', None)
    """
    return next((word for pattern, word in _patterns() if pattern.fullmatch(key)), None)


def unknown(keys: Iterable[str]) -> list[str]:
    """The keys that no word explains."""
    return [key for key in keys if word_of(key) is None]


def page() -> str:
    """docs/metrics.md."""
    lines = [_INTRODUCTION]
    for section, words in WORDS.items():
        lines += [
            f"## {section}",
            "",
            "| key | unit | how it is computed | what moves it | in the papers |",
            "|---" * 5 + "|",
        ]
        for word in words:
            key = f"**`{word.key}`**" if word.always else f"`{word.key}`"
            cells = (key, word.unit, word.formula, word.moves, word.paper)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    alarms = (f"| `{name}` | {kind.when} | {kind.look} |\n".replace("<", r"\<") for name, kind in KINDS.items())
    return "\n".join(lines) + "\n" + _ALARMS + "".join(alarms)


if __name__ == "__main__":
    print(page(), end="")
