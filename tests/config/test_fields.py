"""Every field of the configuration is checked by type, range, choice and finiteness; the user's sections too."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from entropy_rl import config
from entropy_rl.config.defaults import FIELDS
from entropy_rl.config.fields import near
from entropy_rl.config.recipes import RECIPES
from entropy_rl.rules import Rule

RULES = {key: field.rule for key, field in FIELDS.items() if isinstance(field.rule, Rule)}
NUMBERS = [key for key, rule in RULES.items() if "number" in rule.kind]


def changed(key: str, value: Any) -> ConfigDict:
    """The default with one field replaced, of whatever type, as a file that unlocks and retypes could do."""
    c = config.default()
    *path, name = key.split(".")
    section = c
    for part in path:
        section = section[part]
    with section.unlocked(), section.ignore_type():
        section[name] = value
    return c


def refused(key: str, value: Any, message: str = ""):
    with pytest.raises(ValueError, match=rf"{key.replace('.', '[.]')}.*{message}"):
        config.check(changed(key, value))


def test_the_default_passes():
    config.check(config.default())


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "1", None])
def test_no_number_is_anything_but_a_finite_number(key: str, value: Any):
    refused(key, value, "must be")


@pytest.mark.parametrize("key", [k for k, rule in RULES.items() if rule.kind == "whole number"])
def test_a_whole_number_has_no_fraction_and_is_no_truth_value(key: str):
    refused(key, 1.5, "must be a whole number")
    refused(key, True, "must be a whole number")


@pytest.mark.parametrize("key", [k for k, rule in RULES.items() if rule.kind == "whole number" and rule.most is None])
def test_a_count_fits_into_32_bits(key: str):
    refused(key, 2**31, "must be below 2147483648")


@pytest.mark.parametrize("key", [k for k, rule in RULES.items() if "text" in rule.kind])
@pytest.mark.parametrize("value", [None, 5])
def test_a_text_is_a_text(key: str, value: Any):
    refused(key, value, "must be")


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_stays_in_its_range(key: str):
    rule = RULES[key]
    assert not rule.fault(FIELDS[key].default)
    for bound, beyond in ((rule.least, -1), (rule.above, 0), (rule.most, 1), (rule.below, 0)):
        if bound is not None:
            refused(key, type(FIELDS[key].default)(bound + beyond), "must be")


@pytest.mark.parametrize("key", [k for k, rule in RULES.items() if rule.choices])
def test_a_choice_is_one_of_its_names(key: str):
    refused(key, "other", f"must be one of {RULES[key].choices[0]}")


@pytest.mark.parametrize(
    "overrides, remedy",
    [  # c01, c03 and c04 of the cases found by others
        ({"optim.lr": float("nan")}, r"optim\.lr=nan must be a finite number, 0 or above"),
        ({"optim.lr": float("inf")}, r"optim\.lr=inf must be a finite number, 0 or above"),
        ({"rollout.temperature": float("nan")}, r"rollout\.temperature=nan must be a finite number, above 0"),
        ({"optim.b1": 2.0}, r"optim\.b1=2\.0 must be from 0 to below 1"),
        ({"optim.eps": -1.0}, r"optim\.eps=-1\.0 must be above 0"),
        ({"eval.top_p": 2.0}, r"eval\.top_p=2\.0 must be above 0 and at most 1"),
        ({"warmup.error_rate": 2.0}, r"warmup\.error_rate=2\.0 must be from 0 to 1"),
        ({"seed": 2**32}, r"seed=4294967296 must be from 0 to 4294967295"),  # jax would take it for 0
        ({"data.few_shot": -1}, r"data\.few_shot=-1 must be 0 or above"),
        ({"rollout.stop": (None,)}, r"rollout\.stop=\(None,\) must be a list of texts, none of them empty"),
        ({"rollout.stop": None}, r"rollout\.stop=None must be a list of texts"),
        ({"rollout.stop": ("",)}, r"rollout\.stop=\(''?,\) must be a list of texts"),
    ],
)
def test_values_that_once_passed(overrides: dict[str, Any], remedy: str):
    c = config.default()
    c.update_from_flattened_dict(overrides)
    with pytest.raises(ValueError, match=remedy):
        config.check(c)


BY_GROUP = ("grpo", "dr_grpo", "maxrl", "pass_at_k", "rloo", "quantile")


@pytest.mark.parametrize("method", [m for m in RECIPES if RECIPES[m]["advantage"][0] in BY_GROUP])
def test_one_sample_teaches_a_group_advantage_nothing(method: str):  # c02
    c = config.apply_recipe(config.default(), method)
    c.rollout.samples, c.train.micro_batches = 1, 2
    message = r"rollout\.samples=1 with algo\.advantage='.*': .*set rollout\.samples to 2 or more"
    with pytest.raises(ValueError, match=message):
        config.check(c)


def test_one_response_in_all_teaches_nothing_and_one_sample_needs_no_refill():
    c = config.apply_recipe(config.default(), "reinforce_pp")
    c.rollout.samples, c.rollout.prompts, c.train.updates_per_rollout = 1, 1, 1
    with pytest.raises(
        ValueError, match=r"rollout\.samples=1 with rollout\.prompts=1 and algo\.advantage='reinforce_pp'"
    ):
        config.check(c)
    c.rollout.prompts, c.rollout.refills = 8, 2
    with pytest.raises(ValueError, match=r"rollout\.refills=2 with rollout\.samples=1.*set rollout\.refills to 0"):
        config.check(c)


def test_one_sample_is_enough_for_the_others():
    for method in ("reinforce_pp", "w_reinforce"):
        c = config.apply_recipe(config.default(), method)
        c.rollout.samples = 1
        config.check(c)
    c = config.apply_recipe(config.default(), "reinforce_pp")
    c.rollout.samples, c.algo.advantage.baseline = 1, True
    with pytest.raises(ValueError, match=r"rollout\.samples=1 with algo\.advantage='reinforce_pp'"):
        config.check(c)


@pytest.mark.parametrize(
    "section, value, message",
    [
        ("data.settings", {"min_terms": float("nan")}, r"data\.settings\.min_terms=nan must be a finite number"),
        ("data.settings", {"a": {"b": [1, float("inf")]}}, r"data\.settings\.a\.b\[1\]=inf must be a finite number"),
        ("data.settings", {"a": {1, 2}}, r"data\.settings\.a=\{1, 2\} must be a text, a number"),
        ("warmup.settings", {"x": float("inf")}, r"warmup\.settings\.x=inf must be a finite number"),
        ("eval.sets", {"m": {"tasks": "gsm8k"}}, r"eval\.sets\.m\.tasks is no field of it; it may have task, settings"),
        ("eval.sets", {"m": {}}, r"eval\.sets\.m\.task is missing: it must be a text"),
        ("eval.sets", {"m": {"task": 5}}, r"eval\.sets\.m\.task=5 must be a text"),
        ("eval.sets", {"m": "gsm8k"}, r"eval\.sets\.m='gsm8k' must be \{task, settings\}"),
        ("eval.sets", {"a/b": {"task": "gsm8k"}}, r"eval\.sets: the name 'a/b' becomes part of a key"),
        ("eval.sets", {"m": {"task": "a", "settings": 3}}, r"eval\.sets\.m\.settings=3 must be a section"),
        ("data.mixture", {"a": {"task": "x", "weight": 1.5}}, r"data\.mixture\.a\.weight=1\.5 must be a whole number"),
        ("data.mixture", {"a": {"task": "x", "weight": 0}}, r"data\.mixture\.a\.weight=0 must be 1 or above"),
        ("data.mixture", {"a": {"weight": 2}}, r"data\.mixture\.a\.task is missing"),
        (
            "reward.own",
            {"b": {"function": "m:f", "weight": float("nan")}},
            r"reward\.own\.b\.weight=nan must be a finite",
        ),
        ("reward.own", {"b": {"function": "m:f", "weight": 1e39}}, r"reward\.own\.b\.weight=1e\+39 must be a finite"),
        (
            "reward.own",
            {"b": {"function": "m.f", "weight": 1.0}},
            r"reward\.own\.b\.function='m\.f': .*\"module:function\"",
        ),
        ("reward.own", {"b": {"function": "m:f"}}, r"reward\.own\.b\.weight is missing: it must be a number"),
        ("reward.own", {"mean": {"function": "m:f", "weight": 1.0}}, r"reward\.own\.mean: choose a name"),
    ],
)
def test_sections_whose_keys_the_user_chooses(section: str, value: dict[str, Any], message: str):
    c = config.default()
    first, second = section.split(".")
    c[first][second].update(value)
    with pytest.raises(ValueError, match=message):
        config.check(c)


def test_right_values_there_pass():
    c = config.default()
    c.data.settings.update(min_terms=2, operators=["+", "-"], share=0.5)
    c.eval.sets.m = {"task": "gsm8k", "settings": {"kind": "math"}}
    c.reward.own.b = {"function": "m:f", "weight": -0.1}
    config.check(c)
    c.data.mixture.a = {"task": "x", "weight": 2}
    config.check(c)


@pytest.mark.parametrize(
    "method, changes, message",
    [
        (
            "clip_cov",
            {"transforms.clip_cov.fraction": 2.0},
            r"algo\.transforms\.clip_cov\.fraction=2\.0 must be above 0",
        ),
        ("clip_cov", {"transforms.clip_cov.low": 9.0}, r"algo\.transforms\.clip_cov\.low=9\.0 must be below high=5\.0"),
        ("kl_cov", {"transforms.kl_cov.coef": float("nan")}, r"algo\.transforms\.kl_cov\.coef=nan must be a finite"),
        ("kl_cov", {"transforms.kl_cov.kl": "k2"}, r"algo\.transforms\.kl_cov\.kl='k2' must be one of abs, k3"),
        ("quantile", {"advantage.k": 1.5}, r"algo\.advantage\.k=1\.5 must be from 0 to 1"),
        ("nsr", {"advantage.wrong": float("inf")}, r"algo\.advantage\.wrong=inf must be a finite number"),
        ("grpo", {"objective.low": -0.1}, r"algo\.objective\.low=-0\.1 must be from 0 to 1"),
        ("grpo", {"objective.dual": 1.0}, r"algo\.objective\.dual=1\.0 must be above 1"),
        ("grpo", {"is_cap": float("inf")}, r"algo\.is_cap=inf must be a finite number, 0 or above"),
        ("grpo", {"scope": "batch"}, r"algo\.scope='batch' must be one of global, microbatch"),
        ("grpo", {"chain": ("",)}, r"algo\.chain=\(''?,\) must be a list of texts"),
        (
            "adaptive_entropy",
            {"transforms.adaptive_entropy_bonus.max_coef": -1.0},
            r"max_coef=-1\.0 must be 0 or above",
        ),
        ("steer", {"transforms.steer.floor": 0.0}, r"algo\.transforms\.steer\.floor=0\.0 must be above 0"),
    ],
)
def test_options_of_a_method(method: str, changes: dict[str, Any], message: str):
    c = config.apply_recipe(config.default(), method)
    c.algo.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config.check(c)


def test_an_evaluation_setting_that_nothing_reads_is_refused():
    for key, value in (("temperature", 0.6), ("top_p", 0.7)):
        c = config.default()
        c.eval[key] = value
        with pytest.raises(
            ValueError, match=rf"eval\.{key}={value} with eval\.samples=0 has no effect.*set eval\.samples"
        ):
            config.check(c)
        c.eval.samples = 4
        config.check(c)


def test_unknown_and_missing_fields():
    c = config.default()
    with c.unlocked():
        c.optim.lerning_rate = 1e-6
    with pytest.raises(ValueError, match=r"optim\.lerning_rate is no field of the configuration; near it: .*optim\.lr"):
        config.check(c)
    c = config.default()
    with c.unlocked():
        del c.optim["eps"]
    with pytest.raises(ValueError, match=r"optim\.eps is missing"):
        config.check(c)


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("optim.lerning_rate", "optim.lr"),
        ("optim.lrr", "optim.lr"),
        ("rollout.temp", "rollout.temperature"),
        ("rolout.prompts", "rollout.prompts"),
        ("eval.sample", "eval.samples"),
        ("max_tokens", "rollout.max_tokens"),
    ],
)
def test_the_nearest_keys_include_the_one_that_was_meant(typo: str, meant: str):
    assert meant in near(typo, FIELDS).split(", ")
