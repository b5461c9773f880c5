"""Every recipe can be built, sets every key, and is what the paper ran."""

import pathlib

import pytest

from entropy_rl import config
from entropy_rl import token_transforms as tt
from entropy_rl.config.recipes import RECIPES, recipe
from entropy_rl.objective import advantages
from entropy_rl.objective import surrogates as objectives

KEYS = {"advantage", "objective", "aggregation", "transforms", "scope", "correction", "is_cap"}


@pytest.mark.parametrize("name", RECIPES)
def test_it_builds(name: str):
    settings = recipe(name)
    assert set(settings) == KEYS
    advantages.build(settings["advantage"])
    objectives.build(settings["objective"])
    assert settings["aggregation"] in objectives.AGGREGATIONS
    tt.build(settings["transforms"], settings["scope"], micro_batches=8)
    tt.check_updates_per_rollout(settings["transforms"], 8)


def test_every_method_has_a_recipe():
    assert {recipe(name)["advantage"][0] for name in RECIPES} == set(advantages.ADVANTAGES)
    assert {recipe(name)["objective"][0] for name in RECIPES} == set(objectives.OBJECTIVES)
    assert {t for name in RECIPES for t, _ in recipe(name)["transforms"]} == set(tt.TRANSFORMS)


def test_the_official_settings():
    assert recipe("clip_cov")["objective"] == ("ppo_clip", {"low": 1.0, "high": 1.0})
    assert recipe("kl_cov")["objective"][0] == "policy_gradient"
    assert recipe("forking")["objective"] == ("ppo_clip", {"low": 0.2, "high": 0.28})
    assert {n for n in RECIPES if recipe(n)["scope"] == "microbatch"} == {
        "clip_cov_official",
        "kl_cov_official",
        "forking_official",
    }


def test_a_recipe_is_a_copy():
    recipe("grpo")["scope"] = "microbatch"
    assert recipe("grpo")["scope"] == "global"


@pytest.mark.parametrize("name", RECIPES)
def test_it_fills_the_config_and_comes_back_out(name: str):
    """Every option is a field, so what comes out has at least the recipe's options, in the recipe's order."""
    algo = config.apply_recipe(config.default(), name).algo
    settings = recipe(name)
    for part in ("advantage", "objective"):
        chosen, options = config.named(algo[part])
        assert chosen == settings[part][0] and options.items() >= settings[part][1].items()
    chain = config.transforms_of(algo)
    assert [chosen for chosen, _ in chain] == [chosen for chosen, _ in settings["transforms"]]
    for (_, options), (_, given) in zip(chain, settings["transforms"], strict=True):
        if "inner" in given:
            (inner, options), (chosen, given) = options["inner"], given["inner"]
            assert inner == chosen
        assert options.items() >= given.items()
    assert (algo.aggregation, algo.scope, algo.is_cap) == tuple(settings[k] for k in ("aggregation", "scope", "is_cap"))


@pytest.mark.parametrize("lock", [True, False])
def test_a_recipe_replaces_algo_and_keeps_the_lock(lock: bool):
    c = config.default()
    if not lock:
        c.unlock()
    config.apply_recipe(config.apply_recipe(c, "clip_cov"), "kl_cov")
    assert list(c.algo.transforms) == ["kl_cov"]
    assert c.is_locked == c.algo.is_locked == c.algo.transforms.kl_cov.is_locked == lock


def test_an_unknown_recipe_is_an_error():
    with pytest.raises(ValueError, match="unknown name 'grop'; legal names: grpo, clip_higher"):
        recipe("grop")


def test_the_readme_lists_every_recipe():
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    assert not [name for name in RECIPES if f"`{name}`" not in readme]
