"""Alarms, on made-up rows on both sides of their thresholds."""

import numpy as np
import pytest

from entropy_rl.record import alarms as lib
from entropy_rl.record.alarms import KINDS, RECENT, Watch, alarms
from entropy_rl.record.words import word_of


def rows_of(steps=60, **series):
    """Rows of a run without fault, in which some metrics are functions of the step."""
    rng = np.random.default_rng(0)
    rows = [{"step": 0, "reward/mean": None, "entropy/mean": None}]
    for step in range(1, steps + 1):
        row = {"step": step, "reward/mean": 0.5 + 0.02 * rng.standard_normal(), "entropy/mean": 0.5}
        row |= {"tokens/kept_frac": 0.2, "length/clipped_frac": 0.1, "group/degenerate_frac": 0.3}
        row |= {"sampler/gap_kl": 1e-4}
        rows.append(row | {key.replace("__", "/"): of(step) for key, of in series.items()})
    return rows


def after(step, value, before):
    return lambda now: value if now > step else before


def found(**series):
    return [(alarm.step, alarm.name, alarm.begins) for alarm in alarms(rows_of(**series))]


def test_a_run_without_fault_has_no_alarm():
    assert found() == []


@pytest.mark.parametrize(
    "key, over, under, base, name",
    [
        ("entropy__mean", 0.099, 0.101, 0.5, "collapse"),  # 20% of 0.5
        ("entropy__mean", 1.01, 0.99, 0.5, "explosion"),  # twice 0.5, and 0.5 nats above it
        ("length__clipped_frac", 0.25, 0.249, 0.1, "truncation"),
        ("group__degenerate_frac", 0.8, 0.799, 0.1, "degenerate"),
        ("sampler__gap_kl", 0.0101, 0.0099, 0.0, "sampler_gap"),
        ("tokens__kept_frac", 0.0, 1e-5, 0.2, "empty_mask"),
    ],
)
def test_an_alarm_begins_beyond_its_threshold_and_not_before(key, over, under, base, name):
    at = 30 if name == "empty_mask" else 30 + RECENT - 1  # a mean over the recent rows has to be beyond it
    assert found(**{key: after(29, over, base)}) == [(at, name, True)]
    assert found(**{key: after(29, under, base)}) == []
    assert found(**{key: lambda step: None}) == []  # not measured, or of an earlier version


def test_every_kind_is_tried_above():
    begun = test_an_alarm_begins_beyond_its_threshold_and_not_before.pytestmark[0].args[1]
    assert {case[-1] for case in begun} == set(KINDS)


def test_a_mean_over_the_recent_rows_needs_that_many():
    always = {"group__degenerate_frac": lambda step: 1.0}
    assert alarms(rows_of(RECENT - 1, **always)) == []
    ((step, name, _),) = found(**always)
    assert (step, name) == (RECENT, "degenerate")


def test_low_entropy_is_no_collapse_while_the_reward_rises():
    low = after(29, 0.05, 0.5)
    assert found(entropy__mean=low, reward__mean=lambda step: 0.01 * step) == []
    rising = {"reward__mean": lambda step: 0.01 * min(step, 35) + 0.001 * (step % 2)}
    ((step, name, begins),) = found(entropy__mean=low, **rising)
    assert name == "collapse" and begins and 35 < step < 60
    assert found(entropy__mean=after(4, 0.05, 0.5))[0] == (2 * lib.FLAT, "collapse", True)  # no trend is known before


def test_entropy_that_doubles_from_little_is_no_explosion():
    assert found(entropy__mean=after(29, 0.4, 0.05)) == []


def test_an_alarm_ends_once_its_condition_has_not_held_for_some_rows():
    assert found(tokens__kept_frac=lambda step: 0.0 if step in (10, 13, 17, 40) else 0.5) == [
        (10, "empty_mask", True),
        (17 + RECENT, "empty_mask", False),
        (40, "empty_mask", True),
        (40 + RECENT, "empty_mask", False),
    ]


def test_the_text_names_the_numbers_the_mask_and_what_to_look_at():
    rows = rows_of(3, tokens__kept_frac=lambda step: 0.0)
    rows[1] |= {"state/clip_cov.kept": 0.0, "state/keep_top_entropy.kept": 0.2}
    (alarm,) = alarms(rows)
    assert alarm.text.startswith("alarm empty_mask: tokens/kept_frac is 0: clip_cov. Look at state/<transform>.kept")
    (alarm,) = alarms(rows_of(40, entropy__mean=after(29, 0.05, 0.5)))
    assert "entropy 0.05 nats, 10% of the start's 0.5, and the reward no longer rises. Look at" in alarm.text


def test_a_resumed_run_does_not_repeat_them_and_knows_when_they_end():
    rows = rows_of(length__clipped_frac=lambda step: 0.5 if 20 < step < 40 else 0.1)
    whole = alarms(rows)
    assert [(a.name, a.begins) for a in whole] == [("truncation", True), ("truncation", False)]
    for cut in range(len(rows)):
        resumed = Watch(rows[:cut])
        later = [alarm for row in rows[cut:] for alarm in resumed.see(row)]
        assert later == [alarm for alarm in whole if alarm.step >= cut]
    assert not Watch(rows).active and Watch(rows[:35]).active.keys() == {"truncation"}


def test_what_alarms_read_and_name_is_in_the_table_of_words():
    keys = [w.strip(".,;:") for kind in KINDS.values() for w in kind.look.split() if "/" in w and "<" not in w]
    assert len(keys) > 5 and all(word_of(key) for key in keys), keys
