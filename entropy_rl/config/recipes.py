"""Methods by name: what each paper's method sets in the config section `algo`.

A recipe is a chain and some numbers. It holds every key below, so a method chosen by name depends on no default
set elsewhere:

  advantage     (name, options), see objective/advantages.py
  objective     (name, options), see objective/surrogates.py
  aggregation   see objective/surrogates.py: token_weight
  transforms    ((name, options), …) in the order they act, see token_transforms
  scope         "global" or "microbatch": where the transforms take their statistics
  is_cap        cap of the importance weight between sampler and trainer; 0: no correction
"""

from typing import Any

_GRPO: dict[str, Any] = {
    "advantage": ("grpo", {}),
    "objective": ("ppo_clip", {"low": 0.2, "high": 0.2}),
    "aggregation": "token-mean",
    "transforms": (),
    "scope": "global",
    "is_cap": 0.0,
}
_DAPO = _GRPO | {"objective": ("ppo_clip", {"low": 0.2, "high": 0.28})}


def _with(*transforms: tuple[str, dict[str, Any]], base: dict[str, Any] = _GRPO) -> dict[str, Any]:
    return base | {"transforms": transforms}


_OFF = _GRPO | {"objective": ("ppo_clip", {"low": 1.0, "high": 1.0})}  # what the official runs call no clip
_FREE = _GRPO | {"objective": ("policy_gradient", {})}

RECIPES: dict[str, dict[str, Any]] = {
    # The Entropy Mechanism (arXiv 2505.22617): baselines, the two methods, and the methods as the official runs
    # took their statistics
    "grpo": _GRPO,
    "clip_higher": _DAPO,
    "entropy_bonus": _with(("entropy_bonus", {"coef": 0.005})),
    "reference_kl": _with(("reference_kl", {"coef": 1e-3})),
    "clip_cov": _with(("clip_cov", {"fraction": 2e-4, "low": 1.0, "high": 5.0}), base=_OFF),
    "kl_cov": _with(("kl_cov", {"fraction": 2e-3, "coef": 1.0}), base=_FREE),
    "kl_cov_32b": _with(("kl_cov", {"fraction": 2e-4, "coef": 1.0}), base=_FREE),
    "clip_cov_official": _with(("clip_cov", {"fraction": 2e-4}), base=_OFF | {"scope": "microbatch"}),
    "kl_cov_official": _with(("kl_cov", {"fraction": 2e-3}), base=_FREE | {"scope": "microbatch"}),
    # Beyond the 80/20 Rule (arXiv 2506.01939): DAPO, the top 20% by entropy, other shares, the control
    "dapo": _DAPO,
    "forking": _with(("keep_top_entropy", {"fraction": 0.2}), base=_DAPO),
    "forking10": _with(("keep_top_entropy", {"fraction": 0.1}), base=_DAPO),
    "forking50": _with(("keep_top_entropy", {"fraction": 0.5}), base=_DAPO),
    "forking_v1": _with(("keep_top_entropy", {"fraction": 0.2, "normalizer": "all"}), base=_DAPO),
    "bottom80": _with(("keep_bottom_entropy", {"fraction": 0.8}), base=_DAPO),
    # Later methods
    "adaptive_entropy": _with(("adaptive_entropy_bonus", {"target": 0.2})),  # 2505.22312
    "entropy_shaped": _with(("entropy_shaped_advantage", {"alpha": 0.4, "kappa": 2.0})),  # 2506.14758
    "entropy_ratio": _with(("entropy_ratio_clip", {"low": 0.95, "high": 1.05}), base=_DAPO),  # 2512.05591
    "steer": _with(("steer", {"min_weight": 0.8})),  # 2510.10150
    "positive_reweighting": _with(("positive_reweighting", {"target": 0.2})),  # 2511.05993
    "cispo": _GRPO | {"objective": ("cispo", {"low": 1.0, "high": 4.0})},  # 2506.13585
    "gspo": _GRPO
    | {"objective": ("gspo", {"low": 3e-4, "high": 4e-4}), "aggregation": "sequence-mean-token-mean"},  # 2507.18071
    "ce_gppo": _GRPO | {"objective": ("ce_gppo", {"beta_low": 0.5, "beta_high": 1.0})},  # 2509.20712
    "dr_grpo": _GRPO | {"advantage": ("dr_grpo", {}), "aggregation": "sequence-mean-token-sum-norm"},  # 2503.20783
    "rloo": _GRPO | {"advantage": ("rloo", {})},  # 2402.14740
    "reinforce_pp": _GRPO | {"advantage": ("reinforce_pp", {})},  # 2501.03262
    "quantile": _GRPO | {"advantage": ("quantile", {"k": 0.4})},  # 2509.22611
    "w_reinforce": _FREE | {"advantage": ("signed", {"right": 0.1, "wrong": -1.0})},  # 2506.01347
    "psr": _FREE | {"advantage": ("signed", {"right": 1.0, "wrong": 0.0})},
    "nsr": _FREE | {"advantage": ("signed", {"right": 0.0, "wrong": -1.0})},
    # Controls: as many tokens as Clip-Cov and forking take, at random; the norm Clip-Cov leaves, no token chosen
    "random_positive_clip": _with(("random_positive_clip", {"fraction": 2e-4}), base=_OFF),
    "random_mask": _with(("random_mask", {"fraction": 0.2}), base=_DAPO),
    "matched_norm": _with(("matched_norm", {"inner": ("clip_cov", {"fraction": 2e-4})}), base=_OFF),
}


def recipe(name: str) -> dict[str, Any]:
    """The settings of one method.

    Raises:
      ValueError: unknown name, with the legal ones.
    """
    if name not in RECIPES:
        raise ValueError(f"config method: unknown name {name!r}; legal names: {', '.join(RECIPES)}")
    return dict(RECIPES[name])
