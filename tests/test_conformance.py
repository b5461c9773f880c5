"""What others got wrong (docs/conformance.md): the tests that the page names exist, and those that stood nowhere else.

Each computes the wrong number beside ours, so that it cannot pass because both are the same.
"""

import ast
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference.batches import random_tokens
from updates import CFG, batch, method, params, token_state

from entropy_rl import config, token_transforms
from entropy_rl.config import recipes
from entropy_rl.entropy import entropy
from entropy_rl.model.transformer import Transformer, head_weight, positions
from entropy_rl.stats import masked
from entropy_rl.training import engine, rows, scoring, update

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


@functools.cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_page_names_exists():
    assert len(NAMED) > 10
    assert not [f"{path}::{name}" for path, name in NAMED if name not in names_in(path)]


def test_every_row_of_the_page_names_a_test():
    table = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| code", "|---"))]
    assert len(table) > 8
    assert not [line for line in table if ".py::test_" not in line]


def test_every_test_of_this_file_is_on_the_page():
    own = {name for name in names_in("tests/test_conformance.py") if "page" not in name}
    assert own == {name for path, name in NAMED if path == "tests/test_conformance.py"}


def test_entropy_is_that_of_the_policy_that_samples():
    """OpenRLHF #1319: logits before the temperature, up to 1.03 nats off at 0.5."""
    c = config.default()
    c.rollout.temperature = 0.5
    how = engine.method_of(c.algo, c.rollout, c.train)
    _, got = scoring.token_stats(Transformer(CFG), params(), batch(), how.temperature)
    logits = response_logits()
    right, wrong = (masked.mean(entropy(z), batch().mask) for z in (logits / 0.5, logits))
    assert masked.mean(got, batch().mask) == pytest.approx(float(right), abs=1e-4)
    assert wrong - right > 0.3


def response_logits() -> jax.Array:
    """The logits that the tokens of `batch()` were drawn from, f32[B, T, V], each response in a row of its own."""
    b = batch()
    prompt, seen = (np.repeat(x, len(b.tokens) // len(b.prompt), axis=0) for x in (b.prompt, b.prompt_mask))
    hidden, _ = Transformer(CFG).apply(
        {"params": params()},
        jnp.concatenate([prompt, b.tokens], 1),
        positions(mask := jnp.concatenate([seen, b.mask], 1)),
        mask,
    )
    return (hidden @ head_weight(params()).T)[:, prompt.shape[1] - 1 : -1]


def on_eight_devices(tree):
    return jax.device_put(tree, NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data")))


def test_the_entropy_of_a_rollout_is_a_mean_over_tokens_and_not_over_ranks():
    """TRL #6380: each rank's mean, and then their mean, so a rank with few tokens counts as much as one with many."""
    _, tokens = random_tokens(3)
    length = jnp.array([1, 33, 33, 33, 33, 33, 33, 33])[:, None]
    mask = (jnp.arange(33)[None] < length).astype(jnp.float32)
    h = tokens.entropy.at[0].set(4.0)
    got = rows.rollout_entropy(*on_eight_devices((tokens.logp, h, mask)))["entropy/mean"]
    per_rank = np.mean([np.mean(h[b, : int(length[b, 0])]) for b in range(8)])
    assert float(got) == pytest.approx(float(np.mean(np.asarray(h)[np.asarray(mask) > 0])), rel=1e-5)
    assert per_rank - got > 0.3


def test_a_threshold_is_that_of_the_whole_batch():
    """TRL #3833: the 80% quantile of each GPU's own tokens. Here the ranks differ in their entropy."""
    grads, tokens = random_tokens(4)
    tokens = tokens._replace(entropy=tokens.entropy * jnp.linspace(0.2, 2.0, 8)[:, None])
    made = token_transforms.build([("keep_top_entropy", {"fraction": 0.2})])
    placed = on_eight_devices((grads, tokens))
    out, _ = jax.jit(made.update)(placed[0], made.init(grads), tokens=placed[1], key=None)
    valid, h = np.asarray(tokens.mask) > 0, np.asarray(tokens.entropy)
    whole = valid & (h >= np.sort(h[valid])[-int(0.2 * valid.sum())])
    local = np.stack([row & (x >= np.quantile(x[row], 0.8)) if row.any() else row for row, x in zip(valid, h)])
    np.testing.assert_array_equal(np.asarray(out.logp) != 0, whole)
    assert np.sum(local & ~whole) > whole.sum() / 3, "more than a third of the tokens would be others"


def test_kl_cov_holds_two_tokens_of_a_thousand():
    """SkyRL takes 0.2 as a share; the official `k_percent` 0.2 is divided by 100."""
    _, tokens = random_tokens(5, 100, 100)
    tokens = tokens._replace(mask=jnp.ones((100, 100)), weight=None)
    made = token_transforms.build(recipes.RECIPES["kl_cov"]["transforms"])
    zero = token_transforms.TokenGrads(jnp.zeros((100, 100)), jnp.zeros((100, 100)))
    out, _ = made.update(zero, made.init(zero), tokens=tokens, key=None)
    assert np.count_nonzero(out.logp) == 20, "0.2% of 10,000, and not 2,000"


def test_the_bonus_reaches_the_parameters():
    """TRL #5596: the entropies came from `torch.no_grad()`, so the bonus changed the loss and no parameter."""

    def gradient(name):
        how = method(name)
        f = jax.grad(functools.partial(update.loss_fn, Transformer(CFG), how), has_aux=True)
        return jax.jit(f)(params(), batch(), jax.random.key(0), token_state(how))[0]

    def mean_entropy(p):
        _, h = scoring.token_stats(Transformer(CFG), p, batch(), 1.0)
        return masked.mean(h, batch().mask * batch().valid[:, None])

    bonus = jax.tree.map(jnp.subtract, gradient("entropy_bonus"), gradient("grpo"))
    coef = dict(recipes.RECIPES["entropy_bonus"]["transforms"])["entropy_bonus"]["coef"]
    for got, want in zip(*map(jax.tree.leaves, (bonus, jax.jit(jax.grad(mean_entropy))(params()))), strict=True):
        assert np.any(want)
        np.testing.assert_allclose(got, -coef * want, atol=2e-6 * np.abs(want).max() + 2e-7)
