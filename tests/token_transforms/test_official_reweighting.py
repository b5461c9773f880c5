"""AR, Lopti and Archer against the losses' gradients of their official code in torch, met to 1e-5.

`golden/official_reweighting.npz` holds four batches of `reference/batches.py` and, for each, what these gave:
github.com/zhyang2226/AR-Lopti at cbeb3333 (`ray_trainer.py: compute_reweight_advantage`, the two passes of an update;
`core_algos.py: compute_policy_loss`, `kl_penalty`, `agg_loss`), with α 0.2 and 0.3, clip 0.2 / 0.24, dual clip 10; and
github.com/wizard-III/ArcherCodeR at 8a1785be (`core_algos.py`, and the masks of `dp_actor.py: update_policy`), with the
settings of its script and one micro-batch. The KL penalties have the coefficient 0.1, so that they show. A failure here
means that the science changed: do not refresh the numbers, find what moved.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "official_reweighting.npz")
SEEDS = sorted({name.split("/")[1] for name in GOLDEN.files})
PPO = ("ppo_clip", {"low": 0.2, "high": 0.24, "dual": 10.0})
LOPTI = (
    ("low_probability_reweighting", {"alpha": 0.3}),
    ("reference_kl", {"coef": 0.1, "kind": "k3"}),
    ("lopti", {"bound": 0.5}),
)
SETTINGS = {
    "ar_0.2": (PPO, (("low_probability_reweighting", {"alpha": 0.2}),), 0),
    "ar_0.3": (PPO, (("low_probability_reweighting", {"alpha": 0.3}),), 0),
    "lopti_0": (PPO, LOPTI, 0),
    "lopti_1": (PPO, LOPTI, 1),
    "archer": (("policy_gradient", {}), (("archer", {"coef": 0.1}),), 0),
}


def test_every_setting_has_numbers():
    assert {name.split("/")[0] for name in GOLDEN.files} == {"input", *SETTINGS} and len(SEEDS) == 4


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_that_of_the_official_code(setting):
    spec, transforms, turn = SETTINGS[setting]
    objective, chain = surrogates.build(spec), tt.build(transforms)

    @jax.jit
    def gradient(tokens):
        _, grads, clipped = surrogates.token_gradient(objective, tokens)
        seen = tokens._replace(clipped=clipped)
        return chain.update(grads, chain.init(grads), tokens=seen, key=jax.random.key(0))[0].logp

    for seed in SEEDS:
        names = ("logp", "old_logp", "advantage", "entropy", "mask", "ref_logp")
        logp, old, advantage, entropy, mask, ref = (jnp.asarray(GOLDEN[f"input/{seed}/{k}"]) for k in names)
        turn_B = jnp.full(len(logp), turn, jnp.int32)
        tokens = tt.TokenInfo(logp, old, advantage, entropy, mask, mask < 0, ref_logp=ref, turn=turn_B)
        want = GOLDEN[f"{setting}/{seed}/grad"]
        np.testing.assert_allclose(gradient(tokens), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
