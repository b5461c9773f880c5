"""Every token transform against an independent NumPy version, over random shapes, masks and ties."""

import inspect

import jax
import numpy as np
import pytest
from reference import batches
from reference import transforms as ref

from entropy_rl import token_transforms as tt
from entropy_rl.stats.selection import random_scores

CASES = [
    ("clip_cov", {"fraction": 0.1, "low": 0.1}),
    ("clip_cov", {"fraction": 1.0, "low": 0.5, "high": 2.0}),
    ("clip_cov", {"fraction": 0.2, "low": 0.1, "pick": "highest"}),
    ("kl_cov", {"fraction": 0.2, "coef": 0.5}),
    ("kl_cov", {"fraction": 2e-3, "kl": "k3"}),
    ("keep_top_entropy", {}),
    ("keep_top_entropy", {"fraction": 0.5, "normalizer": "all"}),
    ("keep_top_entropy", {"fraction": 0.21, "up": True}),
    ("keep_top_gradient", {}),
    ("keep_top_gradient", {"fraction": 0.6, "normalizer": "all"}),
    ("keep_top_gradient_estimate", {}),
    ("entropy_score_clip_b", {"bound": 0.5}),
    ("entropy_score_clip_b", {"bound": 1.5, "normalizer": "all"}),
    ("entropy_score_clip_v", {"bound": 0.5, "max_fraction": 1.0}),
    ("entropy_score_clip_v", {"bound": 0.2, "max_fraction": 0.05}),
    ("siren", {"anchor": 0.3}),
    ("siren", {"anchor": 0.0, "fraction": 0.5, "coef": 0.1}),
    ("keep_nonzero_advantage", {}),
    ("keep_nonzero_advantage", {"normalizer": "all"}),
    ("keep_bottom_entropy", {}),
    ("keep_bottom_entropy", {"fraction": 1.0, "normalizer": "all"}),
    ("keep_shuffled_entropy", {}),
    ("keep_shuffled_entropy", {"fraction": 0.5, "normalizer": "all"}),
    ("keep_entropy_positions", {"fraction": 0.3}),
    ("keep_top_ref_entropy", {}),
    ("keep_by_probability", {}),
    ("keep_by_probability", {"fraction": 0.4, "lowest": True, "normalizer": "all"}),
    ("random_mask", {"fraction": 0.3}),
    ("random_positive_clip", {"fraction": 0.1}),
    ("entropy_bonus", {"coef": 0.01}),
    ("adaptive_entropy_bonus", {"target": 0.8, "initial": 0.002}),
    ("bapo", {}),
    ("bapo", {"target": 0.3, "low": 0.3, "low_most": 0.95, "high": 1.1, "high_step": 0.3, "high_most": 3.0}),
    ("adapo", {"target": 0.8, "initial": 0.3}),
    ("adapo", {"target": 0.7, "initial": 0.95, "low": 0.6, "factor": 2.0}),
    ("dcpo_clip", {}),
    ("dcpo_clip", {"low": 0.05, "high": 0.1, "cap": 1.5}),
    ("entropic", {}),
    ("entropic", {"target": 1.5, "bound": 0.3, "proportional": 0.7, "normalizer": "all"}),
    ("positive_reweighting", {"target": 0.8, "initial": 0.5}),
    ("entropy_shaped_advantage", {"alpha": 0.3, "kappa": 1.5}),
    ("entropy_ratio_clip", {}),
    ("steer", {"min_weight": 0.5}),
    ("archer", {"coef": 0.3}),
    ("archer", {"quantile": 0.5, "clip_above": 0.3, "clip_below": 0.05}),
    ("low_probability_reweighting", {"alpha": 0.7}),
    ("lopti", {"bound": 0.3}),
    ("repo", {"initial": 0.03, "target": 0.8}),
    ("repo", {"initial": -0.01, "target": 0.8, "least": 0.008}),
    ("repo", {"initial": 0.02, "form": "rescale"}),
    ("repo", {"initial": 0.04, "form": "rescale", "target": 0.8, "most": 0.5}),
    ("stapo", {"probability": 0.3, "quantile": 0.7}),
    ("rsi", {}),
    ("rsi", {"low": 0.5, "high": 1.5, "normalizer": "all"}),
    ("reference_kl", {"coef": 0.1, "kind": "k2"}),
    ("reference_kl", {"coef": 0.1, "kind": "k3"}),
    ("matched_norm", {"inner": ("keep_top_entropy", {"fraction": 0.3})}),
]


draw = jax.jit(random_scores, static_argnums=3)


def test_every_transform_has_a_case():
    missing = set(tt.TRANSFORMS) - {name for name, _ in CASES}
    assert not missing, f"write {missing} in tests/reference/transforms.py, and add a line for each to CASES here"


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_it_equals_numpy(name, options):
    made, key = tt.build([(name, options)]), jax.random.key(11)
    update = jax.jit(made.update)
    salted = inspect.signature(tt.TRANSFORMS[name]).parameters.get("salt")
    salt = salted.default if salted else 0
    plain = {k: v for k, v in options.items() if k != "initial"}
    if "inner" in plain:
        plain["inner"] = (getattr(ref, options["inner"][0]), options["inner"][1])
    for seed in range(12):
        shape = (1, 1) if seed == 0 else (6, 20)  # masks vary with the seed, programs only with the shape
        grads, tokens = batches.random_tokens(seed, *shape, ties=seed % 2 == 1)
        out, state = update(grads, made.init(grads), tokens=tokens, key=key)
        draws = np.asarray(draw(key, salt, tokens.uid, shape[1]))
        logp, entropy, after, *nucleus = getattr(ref, name)(
            *jax.tree.map(np.asarray, (grads, tokens)), options.get("initial"), draws, **plain
        )
        np.testing.assert_allclose(out.logp, logp, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(out.entropy, entropy, rtol=2e-5, atol=1e-6)
        for expected in nucleus:
            np.testing.assert_allclose(out.nucleus_entropy, expected, rtol=2e-5, atol=1e-6)
        if after is not None:
            np.testing.assert_allclose(state.inner[0][0], after, rtol=1e-5)
