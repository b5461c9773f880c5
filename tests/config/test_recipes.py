"""Every recipe can be built, says everything, and is what the paper ran."""

import pathlib

import pytest

from entropy_rl import token_transforms as tt
from entropy_rl.config.recipes import RECIPES, recipe
from entropy_rl.objective import advantages
from entropy_rl.objective import surrogates as objectives

KEYS = {"advantage", "objective", "aggregation", "transforms", "scope", "is_cap"}


@pytest.mark.parametrize("name", RECIPES)
def test_it_builds(name):
    settings = recipe(name)
    assert set(settings) == KEYS
    advantages.build(settings["advantage"])
    objectives.build(settings["objective"])
    assert settings["aggregation"] in objectives.AGGREGATIONS
    tt.build(settings["transforms"], settings["scope"], micro_batches=8)
    tt.check_updates_per_rollout(settings["transforms"], 8)


def test_every_method_has_a_recipe():
    named = lambda part: {recipe(name)[part][0] for name in RECIPES}
    assert named("advantage") == set(advantages.ADVANTAGES)
    assert named("objective") == set(objectives.OBJECTIVES)
    assert {t for name in RECIPES for t, _ in recipe(name)["transforms"]} == set(tt.TRANSFORMS)


def test_the_official_settings():
    assert recipe("clip_cov")["objective"] == ("ppo_clip", {"low": 1.0, "high": 1.0})
    assert recipe("kl_cov")["objective"][0] == "policy_gradient"
    assert recipe("forking")["objective"] == ("ppo_clip", {"low": 0.2, "high": 0.28})
    assert {n for n in RECIPES if recipe(n)["scope"] == "microbatch"} == {"clip_cov_official", "kl_cov_official"}


def test_a_recipe_is_a_copy():
    recipe("grpo")["scope"] = "microbatch"
    assert recipe("grpo")["scope"] == "global"


def test_an_unknown_recipe_is_an_error():
    with pytest.raises(ValueError, match="unknown name 'grop'; legal names: grpo, clip_higher"):
        recipe("grop")


def test_the_readme_lists_every_recipe():
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    assert not [name for name in RECIPES if f"`{name}`" not in readme]
