"""Adapters in the model: merged and unmerged agree, at any rank, and nothing is lost on the way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, random_params
from updates import CFG

from entropy_rl.model import lora
from entropy_rl.model.config import Lora, ModelConfig
from entropy_rl.model.leaves import leaves
from entropy_rl.model.matrices import WEIGHTS, as_matrices
from entropy_rl.model.transformer import Transformer, abstract_params, head_weight, init_params, positions
from entropy_rl.policy import Policy
from entropy_rl.sampling.base import Decoding, Prompts, Sampling
from entropy_rl.sampling.local import LocalSampler

ALL = tuple(WEIGHTS)


@functools.partial(jax.jit, static_argnames="cfg")
def logits(cfg, params, tokens, mask):
    hidden, _ = Transformer(cfg).apply({"params": params}, tokens, positions(mask), mask)
    return hidden @ head_weight(params).T


def some_tokens(cfg):
    rng = np.random.default_rng(0)
    return rng.integers(3, cfg.vocab_size, (2, 9)), np.ones((2, 9), np.int32)


PAIRS = [("llama", ALL), ("qwen2", ("o", "down", "k"))]


@pytest.mark.parametrize(
    "family, targets", [*PAIRS, *(pytest.param(x, ALL, marks=pytest.mark.slow) for x in FAMILIES if x != "llama")]
)
def test_merged_and_unmerged_agree(family, targets):
    cfg = lora.adapted(FAMILIES[family], Lora(3, 6.0, targets))
    params = random_params(cfg)
    trained, frozen = lora.split(params)
    assert set(trained["layers"]) == {f"{name}_lora_{part}" for name in targets for part in "ab"}
    assert jax.tree.all(jax.tree.map(np.array_equal, lora.join(trained, frozen), params))
    own = logits(cfg, params, *some_tokens(cfg))
    merged = logits(lora.plain(cfg), lora.merged(cfg, params, np.float32), *some_tokens(cfg))
    np.testing.assert_allclose(merged, own, atol=1e-5 * np.abs(own).max())
    without = logits(lora.plain(cfg), frozen, *some_tokens(cfg))
    assert np.abs(without - own).max() > 0.1


def test_the_sampler_draws_from_the_merged_model():
    """The logp of its responses is that of the unmerged model, and its weights have no leaf of an adapter."""
    cfg = lora.adapted(dataclasses.replace(FAMILIES["llama"], eos_ids=(2,)), Lora(3, 6.0, ALL))
    params = jax.device_put(random_params(cfg))
    tokens, mask = some_tokens(cfg)
    prompts = Prompts(tokens.astype(np.int32), mask, np.arange(2, dtype=np.uint32))
    for unroll in (True, False):
        sampler = LocalSampler(Transformer(cfg, unroll=unroll), None)
        out = sampler.sample(params, prompts, jax.random.key(0), n=2, decoding=Decoding(Sampling(1.0), 6, ()))
        rows = np.concatenate([np.repeat(tokens, 2, axis=0), out.tokens], axis=1)
        score = Policy(lora.plain(cfg), lora.merged(cfg, params, np.float32), None).score(rows, np.ones_like(rows))
        np.testing.assert_allclose(out.logp, score.logp[:, 9:], atol=1e-5)


def test_adapters_begin_as_those_of_peft():
    cfg = lora.adapted(CFG, Lora(4, 8.0, ALL))
    layers = lora.fresh(cfg, jax.random.key(0))["layers"]
    for name, inputs in WEIGHTS.items():
        a, b = layers[f"{name}_lora_a"], layers[f"{name}_lora_b"]
        weight = abstract_params(CFG)["layers"][name].shape[1:]
        assert a.shape == (CFG.n_layers, *weight[:inputs], 4) and b.shape == (CFG.n_layers, 4, *weight[inputs:])
        bound = np.prod(weight[:inputs]) ** -0.5
        assert 0.9 * bound < np.abs(a).max() <= bound and a.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert not np.any(b)


def test_the_weights_beside_adapters_are_those_of_the_plain_model():
    shapes = abstract_params(lora.adapted(CFG, Lora(4, 8.0, ALL)))
    assert jax.tree.structure(lora.split(shapes)[1]) == jax.tree.structure(abstract_params(CFG))
    assert lora.split(abstract_params(CFG))[1] == {} and lora.adapted(CFG, Lora(0, 8.0, ALL)) == CFG
    assert set(WEIGHTS) == {path.removeprefix("layers/") for path, x in leaves(CFG).items() if len(x.shape) > 1} - {
        "embed"
    }


def test_at_full_rank_any_change_of_the_weights_can_be_represented():
    """With the rank of the width, every matrix of every layer moves by a given change, through its adapter alone."""
    cfg = lora.adapted(CFG, Lora(CFG.d_model, 16.0, ALL))
    params = init_params(cfg, jax.random.key(0))
    trained, frozen = lora.split(params)
    rng, layers, moved = np.random.default_rng(0), {}, dict(frozen["layers"])
    for name in ALL:
        change = rng.normal(0, 0.1, frozen["layers"][name].shape).astype(np.float32)
        moved[name] = frozen["layers"][name] + change
        flat = np.asarray(jax.vmap(as_matrices)({name: jnp.asarray(change)})[name])
        u, s, v = np.linalg.svd(flat, full_matrices=False)
        for part, x in (("a", u * s[:, None]), ("b", v / cfg.lora.scale)):
            leaf = f"{name}_lora_{part}"
            layers[leaf] = x.reshape(trained["layers"][leaf].shape).astype(np.float32)
    tokens = some_tokens(CFG)
    full = logits(CFG, {**frozen, "layers": moved}, *tokens)
    own = logits(cfg, lora.join({"layers": layers}, frozen), *tokens)
    assert np.abs(full - logits(CFG, frozen, *tokens)).max() > 1e-2
    np.testing.assert_allclose(own, full, atol=1e-5)


def test_a_rank_that_a_matrix_cannot_have_is_refused():
    narrow = ModelConfig(64, 32, 2, 4, 1, 8, 64)
    message = r"model\.lora\.rank=16 is more than k_proj, 32 by 8, can have; give at most 8, or take k_proj out of"
    with pytest.raises(ValueError, match=message):
        lora.adapted(narrow, Lora(16, 32.0, ALL))
    assert lora.adapted(narrow, Lora(16, 32.0, ("q", "up"))).lora.rank == 16


def test_small_changes_of_bfloat16_weights_are_kept_in_the_mean():
    """Frozen bfloat16 weights are numbers of bfloat16: to the nearest, a change below half a last bit would vanish."""
    weight = jnp.ones((1, 64, 64), jnp.bfloat16)
    a, b = jnp.full((1, 64, 1), 1e-3), jnp.full((1, 1, 64), 1.0)
    pending = lora.Pending(weight, a, b, 1.0, 0)
    assert jnp.all((weight + 1e-3).astype(jnp.bfloat16) == weight)
    merged = lora.add(pending, jnp.bfloat16)
    assert merged.dtype == jnp.bfloat16
    assert float(merged.astype(jnp.float32).mean()) == pytest.approx(1.001, abs=2e-4)
    assert jnp.array_equal(merged, lora.add(pending, jnp.bfloat16))


def test_what_the_backward_pass_keeps_is_that_of_the_plain_model_and_the_narrow_products():
    """An adapter's second product is as large as the one that it is added to, and is computed again."""

    def kept(cfg):
        model = Transformer(cfg, remat="dots")

        def total(trained, frozen):
            tokens = jnp.ones((1, 64), jnp.int32)
            hidden, _ = model.apply({"params": lora.join(trained, frozen)}, tokens, jnp.arange(64)[None], tokens)
            return jnp.sum(hidden)

        residuals = jax.eval_shape(lambda t, f: jax.vjp(lambda t: total(t, f), t)[1], *lora.split(abstract_params(cfg)))
        rows = [x for x in jax.tree.leaves(residuals) if x.ndim > 2 and 64 in x.shape]  # positions, not weights
        return sum(x.size for x in rows)

    cfg = dataclasses.replace(CFG, n_layers=3)
    adapters = lora.adapted(cfg, Lora(2, 4.0, WEIGHTS))
    narrow = 3 * 64 * 2 * len(WEIGHTS)
    assert kept(adapters) <= kept(cfg) + narrow
