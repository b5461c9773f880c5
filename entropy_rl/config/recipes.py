"""Methods by name: the settings that each paper's method puts into the config section `algo`.

A recipe is a chain of token transforms and a few numbers. It sets every key below, so a method chosen by name does not
depend on defaults set elsewhere:

  advantage     (name, options), see objective/advantages.py
  objective     (name, options), see objective/surrogates.py
  aggregation   see objective/surrogates.py: token_weight
  transforms    ((name, options), …) in the order in which they act, see token_transforms
  scope         "global": the transforms take their statistics over the whole update; "microbatch": as the official runs
  correction    (name, options) of the weights between sampler and trainer, see objective/corrections.py
  is_cap        short for the correction "token_truncate" with this cap; 0: not used
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from entropy_rl import token_transforms
from entropy_rl.objective.advantages import ADVANTAGES, INPUTS
from entropy_rl.objective.corrections import CORRECTIONS
from entropy_rl.objective.registry import split_spec, unknown_name
from entropy_rl.objective.surrogates import OBJECTIVES
from entropy_rl.token_transforms import Schedule

_GRPO: dict[str, Any] = {
    "advantage": ("grpo", {}),
    "objective": ("ppo_clip", {"low": 0.2, "high": 0.2}),
    "aggregation": "token-mean",
    "transforms": (),
    "scope": "global",
    "correction": ("none", {}),
    "is_cap": 0.0,
}
_DR_GRPO = _GRPO | {"advantage": ("dr_grpo", {}), "aggregation": "sequence-mean-token-sum-norm"}  # 2503.20783
_DAPO = _GRPO | {"objective": ("ppo_clip", {"low": 0.2, "high": 0.28})}
_WIDE_CLIP = _GRPO | {"objective": ("ppo_clip", {"low": 1.0, "high": 1.0})}  # how the official runs turn the clip off
_NO_CLIP = _GRPO | {"objective": ("policy_gradient", {})}


def _with(*transforms: tuple[str, dict[str, Any]], base: dict[str, Any] = _GRPO) -> dict[str, Any]:
    return base | {"transforms": transforms}


RECIPES: dict[str, dict[str, Any]] = {
    # The Entropy Mechanism (arXiv 2505.22617): baselines, the two methods, and the two methods with their statistics
    # taken per micro-batch, as in the official runs
    "grpo": _GRPO,
    "clip_higher": _DAPO,
    "entropy_bonus": _with(("entropy_bonus", {"coef": 0.005})),
    "reference_kl": _with(("reference_kl", {"coef": 1e-3})),
    "clip_cov": _with(("clip_cov", {"fraction": 2e-4, "low": 1.0, "high": 5.0}), base=_WIDE_CLIP),
    "kl_cov": _with(("kl_cov", {"fraction": 2e-3, "coef": 1.0}), base=_NO_CLIP),
    "kl_cov_32b": _with(("kl_cov", {"fraction": 2e-4, "coef": 1.0}), base=_NO_CLIP),
    "clip_cov_official": _with(("clip_cov", {"fraction": 2e-4}), base=_WIDE_CLIP | {"scope": "microbatch"}),
    "kl_cov_official": _with(("kl_cov", {"fraction": 2e-3}), base=_NO_CLIP | {"scope": "microbatch"}),
    # Beyond the 80/20 Rule (arXiv 2506.01939): DAPO, the top 20% of tokens by entropy, other shares, as in the official
    # runs (the ceiling per micro-batch of a rank, dual clip), the control
    "dapo": _DAPO,
    "forking": _with(("keep_top_entropy", {"fraction": 0.2}), base=_DAPO),
    "forking10": _with(("keep_top_entropy", {"fraction": 0.1}), base=_DAPO),
    "forking50": _with(("keep_top_entropy", {"fraction": 0.5}), base=_DAPO),
    "forking_v1": _with(("keep_top_entropy", {"fraction": 0.2, "normalizer": "all"}), base=_DAPO),
    "forking_official": _with(
        ("keep_top_entropy", {"fraction": 0.2, "up": True}),
        base=_GRPO | {"objective": ("ppo_clip", {"low": 0.2, "high": 0.28, "dual": 10.0}), "scope": "microbatch"},
    ),
    "bottom80": _with(("keep_bottom_entropy", {"fraction": 0.8}), base=_DAPO),
    # Later methods
    "adaptive_entropy": _with(("adaptive_entropy_bonus", {"target": 0.2})),  # 2505.22312
    "entropy_shaped": _with(("entropy_shaped_advantage", {"alpha": 0.4, "kappa": 2.0})),  # 2506.14758
    "entropy_ratio": _with(("entropy_ratio_clip", {"low": 0.95, "high": 1.05}), base=_DAPO),  # 2512.05591
    "steer": _with(("steer", {"min_weight": 0.8})),  # 2510.10150
    "positive_reweighting": _with(("positive_reweighting", {"target": 0.2})),  # 2511.05993
    "archer": _with(("archer", {"quantile": 0.8}), base=_NO_CLIP),  # 2507.15778
    "low_probability_reweighting": _with(("low_probability_reweighting", {"alpha": 0.3})),  # 2505.12929
    "lopti": _with(("lopti", {"bound": 0.5})),
    "repo": _with(("repo", {"form": "subtract"})),  # 2603.11682
    "repo_r": _with(("repo", {"form": "rescale"})),
    "stapo": _with(("stapo", {"probability": 0.002, "quantile": 0.8}), base=_DAPO),  # 2602.15620
    "rsi": _with(("rsi", {"low": 0.1, "high": 3.0})),  # 2606.31575
    # a question in the official repository of 2505.22617: the highest covariances in place of a random draw
    "clip_cov_top": _with(("clip_cov", {"fraction": 2e-4, "pick": "highest"}), base=_WIDE_CLIP),
    "bapo": _with(("bapo", {"target": 1.0}), base=_NO_CLIP),  # 2510.18927
    "adapo": _with(("adapo", {"low": 0.2, "initial": 0.28}), base=_NO_CLIP),  # 2603.11682
    "dcpo": _with(("dcpo_clip", {"low": 0.16, "high": 0.2}), base=_NO_CLIP),  # 2509.02333
    "entropic": _with(("entropic", {"target": 0.1})),  # 2511.15248
    "cispo": _GRPO | {"objective": ("cispo", {"low": 1.0, "high": 4.0})},  # 2506.13585
    "gspo": _GRPO
    | {"objective": ("gspo", {"low": 3e-4, "high": 4e-4}), "aggregation": "sequence-mean-token-mean"},  # 2507.18071
    "ce_gppo": _GRPO | {"objective": ("ce_gppo", {"beta_low": 0.5, "beta_high": 1.0})},  # 2509.20712
    "sapo": _GRPO
    | {
        "objective": ("sapo", {"tau_positive": 1.0, "tau_negative": 1.05}),
        "aggregation": "sequence-mean-token-mean",
    },  # 2511.20347
    "dppo": _GRPO | {"objective": ("dppo", {"low": 0.15, "high": 0.15})},  # 2602.04879
    "dr_grpo": _DR_GRPO,
    "rloo": _GRPO | {"advantage": ("rloo", {})},  # 2402.14740
    "reinforce_pp": _GRPO | {"advantage": ("reinforce_pp", {})},  # 2501.03262
    "quantile": _GRPO | {"advantage": ("quantile", {"k": 0.4})},  # 2509.22611
    "maxrl": _GRPO | {"advantage": ("maxrl", {})},  # 2602.02710
    "pass_at_k": _GRPO | {"advantage": ("pass_at_k", {})},  # 2503.19595
    # 2506.01347: PPO-clipped as the official code is; of PSR and NSR only the responses that push count
    "w_reinforce": _GRPO | {"advantage": ("signed", {"right": 0.1, "wrong": -1.0})},
    "psr": _with(("keep_nonzero_advantage", {}), base=_GRPO | {"advantage": ("signed", {"right": 1.0, "wrong": 0.0})}),
    "nsr": _with(("keep_nonzero_advantage", {}), base=_GRPO | {"advantage": ("signed", {"right": 0.0, "wrong": -1.0})}),
    # No reward is read, and the mean entropy is the loss: EM-FT of 2505.15134, on the responses of each step
    "entropy_minimise": _with(("entropy_bonus", {"coef": -1.0}), base=_NO_CLIP | {"advantage": ("none", {})}),
    # Why forking tokens matter: see token_transforms/fork_controls.py
    "forking_shuffled": _with(("keep_shuffled_entropy", {"fraction": 0.2}), base=_DAPO),
    "forking_positions": _with(("keep_entropy_positions", {"fraction": 0.2}), base=_DAPO),
    "forking_base": _with(("keep_top_ref_entropy", {"fraction": 0.2}), base=_DAPO),
    "forking_likely": _with(("keep_by_probability", {"fraction": 0.2}), base=_DAPO),
    "forking_unlikely": _with(("keep_by_probability", {"fraction": 0.2, "lowest": True}), base=_DAPO),
    # What they read beside logp and entropy comes from the head's pass, for them alone
    "gmts": _with(("keep_top_gradient", {"fraction": 0.2}), base=_DAPO),  # 2608.30632, with the exact norm
    "gmts_estimate": _with(("keep_top_gradient_estimate", {"fraction": 0.2}), base=_DAPO),  # as the paper has it
    "entropy_score_clip_b": _with(("entropy_score_clip_b", {"bound": 2.5})),  # 2602.03392
    "entropy_score_clip_v": _with(("entropy_score_clip_v", {"bound": 8.5})),
    "siren": _with(("siren", {"coef": 0.005, "top_p": 0.8, "fraction": 0.2}), base=_DR_GRPO),  # 2509.25133
    # Controls: GRPO without its clip; as many tokens as Clip-Cov and forking select, at random; the gradient norm that
    # Clip-Cov leaves, with no token selected
    "no_clip": _NO_CLIP,
    "random_positive_clip": _with(("random_positive_clip", {"fraction": 2e-4}), base=_WIDE_CLIP),
    "random_mask": _with(("random_mask", {"fraction": 0.2}), base=_DAPO),
    "matched_norm": _with(("matched_norm", {"inner": ("clip_cov", {"fraction": 2e-4})}), base=_WIDE_CLIP),
}


def recipe(name: str) -> dict[str, Any]:
    """The settings of one method, as a copy.

    Args:
        name: A key of `RECIPES`.

    Raises:
        ValueError: If no recipe has that name; the message lists the names.
    """
    if name not in RECIPES:
        near = ", ".join(difflib.get_close_matches(name, RECIPES, 3, 0.5)) or "grpo"
        raise ValueError(f"config method: unknown name {name!r}; legal names: {', '.join(RECIPES)}; nearest: {near}")
    return dict(RECIPES[name])


# The parts of `config.algo` that are one factory with its options.
PARTS: dict[str, Mapping[str, Callable]] = {
    "advantage": ADVANTAGES,
    "objective": OBJECTIVES,
    "correction": CORRECTIONS,
}


def apply_recipe(config: ConfigDict, name: str) -> ConfigDict:
    """Fills `config.algo` from the recipe, with every option of its parts as a separate field.

    Args:
        config: A whole configuration; only its section `algo` is replaced.
        name: A key of `RECIPES`.

    Returns:
        The same configuration.

    Raises:
        ValueError: If no recipe has that name; the message lists the names.
    """
    chosen = recipe(name)
    algo = ConfigDict()
    for key, table in PARTS.items():
        algo[key] = part(table, chosen[key], f"algo.{key}")
    algo.aggregation = chosen["aggregation"]
    algo.scope = chosen["scope"]
    algo.is_cap = chosen["is_cap"]
    algo.transforms = ConfigDict()  # name -> options
    for spec in chosen["transforms"]:
        algo.transforms[split_spec(spec, "algo.transforms")[0]] = options_of(spec)
    algo.chain = tuple(
        split_spec(spec, "algo.transforms")[0] for spec in chosen["transforms"]
    )  # in order of application
    algo.schedule = ConfigDict()  # transform -> option -> how it moves
    config.algo = algo.lock() if config.is_locked else algo
    config.algo.schedule.unlock()  # its keys are the user's
    return config


def part(table: Mapping[str, Callable], spec: Any, key: str) -> ConfigDict:
    """A part of the method as a section: its name and all options of its factory, which are then fields.

    Args:
        table: The factories by name.
        spec: A name, or a pair (name, options); the other options get the factory's defaults.
        key: The config key, for messages.

    Returns:
        A section. An option that is None is an empty field of floats, so that a config may set it; a transform within a
        transform is a section too; an option without a default that `spec` lacks is left out.

    Raises:
        ValueError: No factory has that name.
    """
    name, chosen = split_spec(spec, key)
    if name not in table:
        raise ValueError(unknown_name(table, name, key))
    parameters = inspect.signature(table[name]).parameters
    defaults = {k: p.default for k, p in parameters.items() if k not in INPUTS and p.default is not p.empty}
    section = ConfigDict({"name": name})
    for option, value in (defaults | chosen).items():
        if option == "inner":
            value = part(token_transforms.TRANSFORMS, value, f"{key}.{name}.inner")
        section[option] = config_dict.placeholder(float) if value is None else value
    return section


def options_of(spec: Any) -> ConfigDict:
    """All options of a transform as a section, see `part`; in `config.algo.transforms` the key is its name."""
    section = part(token_transforms.TRANSFORMS, spec, "algo.transforms")
    del section["name"]
    return section


def named(section: ConfigDict) -> tuple[str, dict[str, Any]]:
    """A part of `config.algo` as the pair (name, options) that the registries of factories take.

    >>> named(ConfigDict({"name": "ppo_clip", "low": 0.2, "high": 0.28}))
    ('ppo_clip', {'high': 0.28, 'low': 0.2})
    """
    options = section.to_dict()
    if isinstance(section.get("inner"), ConfigDict):
        options["inner"] = named(section.inner)
    return options.pop("name"), options


def transforms_of(algo: ConfigDict) -> list[tuple[str, dict[str, Any]]]:
    """The chain of `config.algo` as `token_transforms.build` takes it: (name, options), in order of application.

    An option that `algo.schedule` names is a `Schedule` that starts with the option's value.
    """
    chain = [named(ConfigDict({"name": name, **algo.transforms[name]})) for name in algo.chain]
    for name, options in chain:
        for option, moves in algo.get("schedule", {}).get(name, {}).items():
            options[option] = Schedule(options[option], **moves)
    return chain
