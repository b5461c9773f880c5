"""What a sweep runs: arms, seeds, shared warm-ups, and what it refuses before any run."""

import pytest

from entropy_rl.sweep.plan import plan, read_config, seeds_of

QUICK = "configs/quickstart.py"


def test_every_method_has_every_seed_and_seeds_share_a_warm_up():
    made = plan(QUICK, ["grpo", "kl_cov"], [0, 1], [])
    assert [(job.arm, job.seed) for job in made.jobs] == [("grpo", 0), ("grpo", 1), ("kl_cov", 0), ("kl_cov", 1)]
    assert [job.warm_up for job in made.jobs[:2]] == [job.warm_up for job in made.jobs[2:]]
    assert len(made.warm_ups) == 2 and {job.steps for job in made.jobs} == {80}
    assert [arm.base for arm in made.arms] == ["grpo", "grpo"]


def test_an_axis_makes_arms_and_each_is_compared_with_the_first_method_at_the_same_value():
    made = plan(QUICK, ["grpo", "kl_cov"], [0], [("optim.lr", "1e-4,2e-4"), ("train.steps", "5")])
    assert [arm.name for arm in made.arms] == ["grpo,lr=1e-4", "grpo,lr=2e-4", "kl_cov,lr=1e-4", "kl_cov,lr=2e-4"]
    assert [arm.base for arm in made.arms][2:] == ["grpo,lr=1e-4", "grpo,lr=2e-4"]
    assert len(made.warm_ups) == 1  # the learning rate of RL does not change the warm-up
    c = read_config(made.jobs[3].flags)
    assert (c.optim.lr, c.train.steps, c.algo.chain) == (2e-4, 5, ("kl_cov",))


def test_methods_by_rewards_are_one_command():
    made = plan(QUICK, ["grpo", "entropy_minimise"], [0], [("reward.kind", "answer,random,none")])
    kinds = [f"kind={kind}" for kind in ("answer", "random", "none")]
    assert [arm.name for arm in made.arms] == [f"{m},{kind}" for m in ("grpo", "entropy_minimise") for kind in kinds]
    assert [read_config(job.flags).reward.kind for job in made.jobs] == ["answer", "random", "none"] * 2
    assert len(made.warm_ups) == 1


def test_one_method_with_an_axis_is_compared_with_its_first_value():
    made = plan(QUICK, ["kl_cov"], [0], [("algo.transforms.kl_cov.fraction", "0.002,0.02")])
    assert [arm.base for arm in made.arms] == ["kl_cov,fraction=0.002"] * 2


def test_what_changes_the_warm_up_has_its_own():
    made = plan(QUICK, ["grpo"], [0], [("model.tiny.d_model", "128,64")])
    assert len(made.warm_ups) == 2


def test_a_run_without_a_warm_up_shares_none():
    made = plan(QUICK, ["grpo"], [0], [("warmup.updates", "0")])
    assert made.warm_ups == [] and made.jobs[0].warm_up == ""


def test_a_config_with_an_argument_gets_the_method_after_it():
    made = plan("configs/smollm2.py", ["grpo"], [3], [])
    assert made.jobs[0].flags[0] == "--config=configs/smollm2.py:grpo"
    made = plan("configs/beyond_80_20.py:qwen3_8b", ["dapo"], [3], [])
    assert made.jobs[0].flags[0] == "--config=configs/beyond_80_20.py:qwen3_8b,dapo"


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        (["grpo", "kl_cv"], [], "kl_cv"),
        (["grpo", "grpo"], [], "named twice"),
        (["grpo"], [("optim.lrr", "1")], "lrr"),
        (["grpo"], [("optim.lr", "1e-4,x")], "optim.lr=x"),
        (["grpo"], [("rollout.prompts", "7")], "rollout.prompts=7"),
        (["grpo"], [("optim.lr", "1e-4,1e-4")], "share a folder"),
    ],
)
def test_what_is_wrong_is_named_before_any_run(methods, settings, message):
    with pytest.raises(ValueError, match=message):
        plan(QUICK, methods, [0], settings)


@pytest.mark.parametrize("text", ["", "0", "3,3", "5-4", "a", "1.5", "-1"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--seeds"):
        seeds_of(text)
