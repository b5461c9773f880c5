"""The common matrix: what every token transform must do. A new one takes part once it is in TRANSFORMS.

The matrix builds each with its default options, or with those in OPTIONS. A transform needs a line there if an option
has no default, or if its defaults change nothing on a batch as small as this one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt

OPTIONS = {
    "adaptive_entropy_bonus": {"target": 5.0, "initial": 0.001},
    "clip_cov": {"fraction": 0.1, "low": -1.0},
    "entropic": {"bound": 0.3},
    "entropy_bonus": {"coef": 0.01},
    "entropy_score_clip_b": {"bound": 0.5},
    "entropy_score_clip_v": {"bound": 0.5, "max_fraction": 0.1},
    "kl_cov": {"fraction": 0.1},
    "matched_norm": {"inner": ("clip_cov", {"fraction": 0.1, "low": -1.0})},
    "positive_reweighting": {"initial": 0.5},
    "random_positive_clip": {"fraction": 0.1},
    "reference_kl": {"coef": 0.1},
    "stapo": {"probability": 0.3},
    "siren": {"anchor": 0.0},
}
B, T, KEY = 8, 24, jax.random.key(7)


HINT = "add a line with options to OPTIONS in tests/token_transforms/test_matrix.py"


@functools.cache
def transform(name: str) -> tuple[Callable[..., Any], Callable[..., Any], list[str]]:
    """init, the jitted update, and a list that grows whenever the update is traced."""
    try:
        made = tt.build([(name, OPTIONS.get(name, {}))])
    except ValueError as error:
        error.add_note(f"The common matrix could not build {name}. If an option has no default, {HINT}.")
        raise
    traced: list[str] = []

    @jax.jit
    def update(
        grads: tt.TokenGrads, state: tt.ChainState, tokens: tt.TokenInfo, key: jax.Array
    ) -> tuple[tt.TokenGrads, tt.ChainState]:
        traced.append(name)
        return made.update(grads, state, tokens=tokens, key=key)

    return made.init, update, traced


def run(
    name: str, grads: tt.TokenGrads, tokens: tt.TokenInfo, key: jax.Array = KEY
) -> tuple[tt.TokenGrads, tt.ChainState]:
    init, update, _ = transform(name)
    return update(grads, init(grads), tokens, key)


pytestmark = pytest.mark.parametrize("name", sorted(tt.TRANSFORMS))


def test_it_changes_something(name):
    grads, tokens = random_tokens(1, B, T)
    out, _ = run(name, grads, tokens)
    assert any(np.any(a != b) for a, b in zip(out, grads, strict=True)), (
        f"{name} changes no gradient of this random batch of {B}x{T} tokens. Either it never acts, or its default "
        f"options act only on larger or different batches: then {HINT}, with which it does."
    )


def test_shapes_dtypes_and_the_state_structure_are_kept(name):
    grads, tokens = random_tokens(1, B, T)
    state = transform(name)[0](grads)
    out, after = run(name, grads, tokens)
    assert isinstance(out, tt.TokenGrads)
    assert all(x.shape == (B, T) and x.dtype == jnp.float32 for x in out)
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after))
    assert after == before


def test_it_is_exactly_zero_at_masked_tokens_and_does_not_read_them(name):
    grads, tokens = random_tokens(2, B, T)
    out, state = run(name, grads, tokens)
    hidden = tokens.mask == 0

    def spoil(x: jax.Array) -> jax.Array:
        return jnp.where(hidden, jnp.nan, x)

    spoilt = tokens._replace(
        logp=spoil(tokens.logp),
        old_logp=spoil(tokens.old_logp),
        entropy=spoil(tokens.entropy),
        advantage=spoil(tokens.advantage),
        weight=spoil(tokens.weight),
        old_entropy=spoil(tokens.old_entropy),
        ref_logp=spoil(tokens.ref_logp),
        ref_entropy=spoil(tokens.ref_entropy),
        prob_square=spoil(tokens.prob_square),
        score_mean=spoil(tokens.score_mean),
        nucleus_entropy=spoil(tokens.nucleus_entropy),
    )
    assert not any(np.any(g[hidden]) for g in out)
    jax.tree.map(np.testing.assert_array_equal, (out, state), run(name, grads, spoilt))


def test_it_is_finite_at_the_edges(name):
    grads, tokens = random_tokens(3, B, T)
    nothing = tokens._replace(mask=jnp.zeros((B, T)))
    edges = {
        "log-ratio 1e4": tokens._replace(old_logp=tokens.logp - 1e4),
        "log-ratio -1e4": tokens._replace(old_logp=jnp.zeros((B, T)), logp=jnp.full((B, T), -1e4)),
        "certain": tokens._replace(logp=jnp.zeros((B, T)), entropy=jnp.zeros((B, T)), old_entropy=jnp.zeros((B, T))),
        "no advantage": tokens._replace(advantage=jnp.zeros((B, T))),
        "nothing valid": nothing,
    }
    for edge, batch in edges.items():
        out, state = run(name, grads, batch)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((out, state))), edge
        assert not np.any(np.where(batch.mask > 0, 0, out.logp)), edge
    out, _ = run(name, jax.tree.map(jnp.zeros_like, grads), nothing)
    assert not np.any(out.logp) and not np.any(out.entropy)


def assert_same(a: Any, b: Any) -> None:
    """Asserts that exactly the same tokens are stopped; values may differ by rounding (a norm is a float sum)."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x) == 0, np.asarray(y) == 0)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_sequences_does_not_matter(name, ties):
    grads, tokens = random_tokens(4, B, T, ties=ties)
    order = np.random.default_rng(0).permutation(B)

    def shuffle(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[order], tree)

    out, state = run(name, grads, tokens)
    assert_same((shuffle(out), state), run(name, shuffle(grads), shuffle(tokens)))


def test_eight_devices_select_the_same_and_gather_no_statistic(name):
    grads, tokens = random_tokens(5, B, T, ties=True)
    init, update, _ = transform(name)
    rows = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    arguments = jax.device_put(grads, rows), init(grads), jax.device_put(tokens, rows), KEY
    compiled = update.lower(*arguments).compile()
    assert_same(run(name, grads, tokens), compiled(*arguments))
    gathered = [line for line in compiled.as_text().splitlines() if "all-gather(" in line and f",{T}]" in line]
    assert not gathered


def test_it_does_not_retrace_when_the_batch_changes(name):
    run(name, *random_tokens(1, B, T))
    traced = list(transform(name)[2])
    run(name, *random_tokens(6, B, T))
    assert transform(name)[2] == traced


def test_a_mask_keeps_its_share_in_its_state(name):
    grads, tokens = random_tokens(6, B, T)
    ones = jax.tree.map(jnp.ones_like, grads)
    out, state = run(name, ones, tokens)
    is_mask = isinstance(tt.TRANSFORMS[name](**_plain(name)), tt.TokenMask)
    assert isinstance(state.inner[0], tt.Masked) or not is_mask
    share = np.sum((np.asarray(out.logp) != 0) & (np.asarray(tokens.mask) > 0)) / np.sum(np.asarray(tokens.mask))
    kept = float(tt.kept_fraction(state))
    assert kept == pytest.approx(share if is_mask else 1.0)
    if is_mask:
        np.testing.assert_array_equal(out.logp != 0, out.entropy != 0)
        np.testing.assert_array_equal(out.logp != 0, out.nucleus_entropy != 0)
        assert kept == float(state.inner[0].kept)


def _plain(name: str) -> dict[str, Any]:
    """The options of a transform as its factory takes them, with `inner` built."""
    options = dict(OPTIONS.get(name, {}))
    if "inner" in options:
        options["inner"] = tt.build([options["inner"]])
    return options
