"""Every key of metrics.jsonl has a word, and docs/metrics.md shows all of them."""

import pathlib

import jax.numpy as jnp
import pytest
from test_loop import from_file

from entropy_rl import loop
from entropy_rl import token_transforms as tt
from entropy_rl.config.recipes import RECIPES, recipe
from entropy_rl.record import jsonl
from entropy_rl.record.alarms import KINDS
from entropy_rl.record.word_table import WORDS
from entropy_rl.record.words import METRIC_KEYS, page, unknown, word_of
from entropy_rl.training.rows import state_row

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = pathlib.Path(__file__).parents[2]
EVERY = [word for words in WORDS.values() for word in words]


def test_the_page_shows_the_table():
    text = (ROOT / "docs/metrics.md").read_text()
    assert text == page(), "make it again: python -m entropy_rl.record.words > docs/metrics.md"
    assert all(f"`{word.key}`" in text for word in EVERY) and all(f"| `{name}` |" in text for name in KINDS)


def test_a_word_is_whole_and_there_once():
    assert len({word.key for word in EVERY}) == len(EVERY)
    for word in EVERY:
        assert all((word.key, word.unit, word.formula, word.moves)) and "\n" not in "".join(map(str, word)), word
        assert word_of(word.key.replace("<", "").replace(">", "")) is not None
    assert word_of("state/repo.coef").key == "state/repo.coef" and word_of("state/clip_cov.kept").unit == "share"


@pytest.mark.parametrize(
    "key",
    ["entropy/meen", "eval/a/b/accuracy", "eval/a/acc", "state/repo.zeta", "time/train", "step/x", "", "quadrant/x"],
)
def test_a_key_without_a_word_is_seen(key):
    assert unknown(["step", key, "entropy/mean"]) == [key]


def test_the_state_of_every_transform_has_its_words():
    zero = tt.TokenGrads(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    row = {}
    for transforms in (recipe(name)["transforms"] for name in RECIPES):
        row |= state_row([name for name, _ in transforms], tt.build(transforms).init(zero))
    assert not unknown(row)
    assert {"state/repo.coef", "state/adapo.high", "state/entropic.used", "state/clip_cov.kept"} <= row.keys()
    named = {word.key for word in EVERY if word.key.startswith("state/") and "<" not in word.key}
    assert named <= row.keys()


@pytest.mark.slow
def test_a_run_with_all_that_is_measured_writes_nothing_without_a_word(tmp_path):
    """A mixture with refills and samples, a control, a correction, a schedule, and transforms with a state."""
    lines = [f'{{"question": "{i} - {j} =", "answer": {i - j}}}\n' for i in range(10) for j in range(10)]
    (tmp_path / "minus.jsonl").write_text("".join(lines))
    c = from_file(
        tmp_path, **{"train.steps": 2, "eval.every": 2, "eval.problems": 4, "measure.every": 1, "mesh.data": 1}
    )
    c.reward.kind, c.warmup.updates = "random", 1
    c.algo.is_cap = 2.0
    states = {"adapo": {}, "repo": {}, "entropic": {}, "positive_reweighting": {}, "clip_cov": {"fraction": 0.01}}
    with c.algo.unlocked():
        c.algo.objective, c.algo.transforms, c.algo.chain = {"name": "policy_gradient"}, states, tuple(states)
        c.algo.schedule.clip_cov = {"fraction": {"to": 0.1, "steps": 4}}
    loop.run(c, str(tmp_path / "run"))
    rows = jsonl.read(tmp_path / "run" / "metrics.jsonl")
    written = {key for row in rows for key, value in row.items() if value is not None}
    assert len(rows) == 3 and not unknown(written)
    for key in EVERY_FAMILY:
        assert any(key in k for k in written), key
    for word in EVERY:  # nor is there a word that nothing writes
        assert any(word_of(k) is word for k in written) or word.key in ELSEWHERE, word.key


EVERY_FAMILY = (
    "quadrant/",
    "refill/",
    "correction/",
    "schedule/clip_cov.fraction",
    "reward/control",
    "pass@2",
    "state/",
)
ELSEWHERE = {*METRIC_KEYS} | {w.key for w in EVERY if w.key.startswith(("state/adaptive", "state/siren"))}
