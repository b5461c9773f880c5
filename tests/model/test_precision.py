"""The precision of a run: what each name means, and that a float32 head is one in every product of it."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from updates import CFG, N, T, batch, params

from entropy_rl.config.defaults import FIELDS
from entropy_rl.model import decode, head, precision
from entropy_rl.model.transformer import Transformer, head_inputs, head_weight, init_params
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.sampling import slots
from entropy_rl.training import scoring

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
MODELS = {
    name: Transformer(CFG, precision.compute_dtype(name), head_dtype=precision.head_dtype(name))
    for name in ("float32", "bfloat16", precision.FLOAT32_HEAD)
}


def test_every_name_of_the_field_is_a_precision():
    names = FIELDS["model.dtype"].rule.choices
    means = {name: (precision.compute_dtype(name), precision.head_dtype(name)) for name in names}
    assert means == {
        "auto": (F32, F32),  # on a CPU
        "float32": (F32, F32),
        "bfloat16": (BF16, BF16),
        "bfloat16_float32_head": (BF16, F32),
    }


def products(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every product in a jaxpr, those in its loops and calls included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                    yield from products(getattr(inner, "jaxpr", inner))


WIDE = dataclasses.replace(CFG, vocab_size=97)  # a number that no other axis has


@functools.cache
def pulled_back(name: str) -> tuple[Counter, Counter]:
    """Of the products of an update, those over the vocabulary and the others: how many of which precision."""
    model = Transformer(WIDE, precision.compute_dtype(name), head_dtype=precision.head_dtype(name))
    data = batch()

    def pulled(params):
        ones = jnp.ones(data.tokens.shape)
        return scoring.pull(TokenGrads(ones, ones), *scoring.token_stats(model, params, data, 1.0))

    over, others = Counter(), Counter()
    with precision.precision(model.dtype):
        made = jax.make_jaxpr(jax.grad(pulled))(jax.eval_shape(lambda key: init_params(WIDE, key), jax.random.key(0)))
    for product in products(made.jaxpr):
        into = over if any(97 in v.aval.shape for v in (*product.invars, *product.outvars)) else others
        into[(*(str(v.aval.dtype) for v in product.invars), str(product.params["precision"]))] += 1
    return over, others


def test_the_products_over_the_vocabulary_and_no_others_have_the_precision_of_the_head():
    exact = str((jax.lax.Precision.HIGHEST,) * 2)
    for name, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), (precision.FLOAT32_HEAD, "float32")):
        over, _ = pulled_back(name)
        assert over.total() >= 3, name  # logits, d hidden, d head
        assert all(key[:2] == (dtype, dtype) and (key[2] == exact) == (dtype == "float32") for key in over), over
    assert pulled_back("bfloat16")[1] == pulled_back(precision.FLOAT32_HEAD)[1]


def test_a_float32_head_scores_as_float64_does_from_the_same_hidden_states():
    hidden = jax.random.normal(jax.random.key(0), (N, T, CFG.d_model), jnp.bfloat16)
    tokens = batch().tokens[:N]
    z = np.asarray(hidden, np.float64) @ np.asarray(head_weight(params()), np.float64).T
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    want = np.take_along_axis(z, tokens[..., None], -1)[..., 0]

    def error(name):
        logp, _ = head.logp_and_entropy(*head_inputs(MODELS[name], params(), hidden), tokens)
        return np.abs(np.asarray(logp) - want).max()

    assert error("float32") < 1e-4 and error(precision.FLOAT32_HEAD) < 1e-4
    assert error("bfloat16") > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_the_sampler_multiplies_as_the_scorer_does(tied):
    model = MODELS[precision.FLOAT32_HEAD]
    p = dict(params())
    if not tied:
        p["head"] = np.asarray(p["embed"])[::-1].copy()
    weights = decode.decode_weights(model, p, places=T)
    assert {x.dtype for x in jax.tree.leaves(weights.layers)} == {BF16}
    hidden = jax.random.normal(jax.random.key(0), (N, CFG.d_model), jnp.bfloat16)
    h, W_DxV = head_inputs(model, p, hidden)
    assert h.dtype == W_DxV.dtype == F32
    want = np.asarray(hidden, np.float64) @ np.asarray(head_weight(p), np.float64).T
    np.testing.assert_allclose(slots._logits(weights, hidden), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(h @ W_DxV, want, rtol=1e-5, atol=1e-5)
    assert (weights.embed if tied else weights.head).dtype == F32
