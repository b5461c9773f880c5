"""Runs that recorded everything that a report reads."""

import json

import pytest
import recorded_runs
import small_runs

from entropy_rl import config, loop


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """The directory of a run of 6 steps with kl_cov: rollouts of steps 3 and 6, all checkpoints of even steps."""
    c = small_runs.get_config("grpo")
    config.apply_recipe(c, "kl_cov")
    c.algo.transforms.kl_cov.fraction = 0.1
    c.optim.lr, c.train.steps, c.eval.every, c.measure.every, c.log.rollouts = 1e-2, 6, 6, 1, 3
    c.checkpoint.every = c.checkpoint.keep_every = 2
    workdir = tmp_path_factory.mktemp("recorded") / "run"
    loop.run(c, str(workdir))
    return workdir


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory):
    """The directory of a run that was never made, with hostile texts among its tokens."""
    workdir = tmp_path_factory.mktemp("made_up") / "run"
    recorded_runs.write_run(workdir, 0, responses=48, length=30)
    rows = recorded_runs.metric_rows()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir
