"""What a run records of its tokens: against the run's own metrics, and bit for bit without it, and when resumed."""

import shutil

import numpy as np
import pandas as pd
import pytest
import small_runs

from entropy_rl import config, covariance, loop
from entropy_rl.record import jsonl, rollouts
from entropy_rl.training.update import FATES

pytestmark = pytest.mark.usefixtures("compiled_once")


def small(**overrides):
    c = small_runs.get_config("grpo")
    c.train.steps, c.log.rollouts, c.eval.every = 4, 2, 0
    config.apply_recipe(c, "kl_cov")
    c.algo.transforms.kl_cov.fraction = 0.1
    c.update_from_flattened_dict(overrides)
    return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("recorded")
    loop.run(small(), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def responses(whole):
    return pd.read_parquet(whole / "rollouts")


def tokens_of(responses, *names):
    return responses.explode(list(names))[["step", "update", "advantage", *names]].dropna()


def test_every_second_step_is_there_whole(whole, responses):
    c = small()
    assert sorted(set(responses.step)) == [2, 4]
    assert len(responses) == 2 * c.rollout.prompts * c.rollout.samples
    groups = responses.groupby(["step", "prompt"])
    assert all(sorted(group["sample"]) == list(range(c.rollout.samples)) for _, group in groups)
    lists = responses[list(rollouts.TOKEN_COLUMNS)]
    assert (responses.length == lists.map(len).T).all().all()
    samples = jsonl.read(whole / "samples.jsonl")
    first = responses[responses.step == 2].sort_values(["update"], kind="stable").iloc[0]
    assert first.text == next(s["response"] for s in samples if s["step"] == 2)
    joined = responses.token.map("".join)
    assert (joined.str.replace(" ", "").str.len() > 0).all()


def test_it_is_what_the_metrics_are_made_of(whole, responses):
    for row in small_runs.rows(whole):
        here = responses[responses.step == row["step"]]
        if not len(here):
            continue
        assert here.reward.mean() == pytest.approx(row["reward/mean"], rel=1e-6)
        assert here.length.mean() == pytest.approx(row["length/mean"], rel=1e-6)
        parts = []
        for _, update in here.groupby("update"):
            logp, given = np.concatenate(update.logp.to_list()), np.concatenate(update.covariance.to_list())
            advantage = np.repeat(update.advantage.to_numpy(), update.length)
            want = covariance.token_covariance(logp, advantage, np.ones_like(logp))
            np.testing.assert_allclose(given, want, rtol=1e-5, atol=1e-6)
            parts.append(given.mean())
        assert np.mean(parts) == pytest.approx(row["cov/mean"], rel=1e-4, abs=1e-7)


def test_a_tokens_fate_is_what_became_of_its_gradient(responses):
    found = tokens_of(responses, "gradient", "gradient_after", "fate")
    assert set(found.fate) <= {*FATES, "kl_cov"} and {"kept", "kl_cov"} <= set(found.fate)
    kept, held = found[found.fate == "kept"], found[found.fate == "kl_cov"]
    assert (kept.gradient == kept.gradient_after).all() and (kept.gradient != 0).any()
    assert (held.gradient != held.gradient_after).all()
    idle = found[found.fate == "no advantage"]
    assert (idle.advantage == 0).all() and (idle.gradient_after == 0).all()


def test_the_run_is_the_same_bit_for_bit_without_it(whole, tmp_path):
    loop.run(small(**{"log.rollouts": 0}), str(tmp_path))
    unequal = small_runs.differences(whole, tmp_path, 4)
    assert unequal == ["rollouts/step-00000002.parquet", "rollouts/step-00000004.parquet"]
    assert not (tmp_path / "rollouts").exists()


def test_a_resumed_run_records_the_same(whole, responses, tmp_path):
    loop.run(small(**{"train.steps": 3, "checkpoint.every": 1}), str(tmp_path))
    (tmp_path / "rollouts" / "step-00000004.parquet").write_text("of a step that was lost")
    loop.run(small(**{"checkpoint.every": 1}), str(tmp_path))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rollouts"), responses)


@pytest.mark.slow
def test_a_run_that_starts_afresh_sets_its_rollouts_aside(whole, responses, tmp_path):
    loop.run(small(), str(tmp_path), force=True)
    for folder in ("checkpoints", "warmup"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    loop.run(small(), str(tmp_path), force=True)
    for folder in (tmp_path, tmp_path / "before-1"):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "rollouts"), responses)
