"""One small update that several tests share: a model, a batch of whole groups, and methods that act on it.

Shapes: N prompts, P prompt positions, G samples per prompt, B = N·G responses, T response positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_rl import config, token_transforms
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params
from entropy_rl.objective import advantages
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import packing, scoring
from entropy_rl.training.batch import Batch
from entropy_rl.training.update import Method

CFG = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=8, d_ff=64, eos_ids=(2,))
N, P, G, T = 8, 5, 4, 6
B = N * G


@functools.cache
def params(cfg=CFG):
    p = init_params(cfg, jax.random.key(0))
    p["embed"] *= 10
    return jax.device_get(p)


@functools.cache
def batch() -> Batch:
    """Responses of 0 to T tokens, some of them not valid, off-policy."""
    rng = np.random.default_rng(0)
    length = rng.integers(0, T + 1, B)
    mask = (np.arange(T) < length[:, None]).astype(np.int32)
    start = (np.arange(P) >= rng.integers(0, P, N)[:, None]).astype(np.int32)
    valid = rng.random(B) > 0.1
    advantage = np.asarray(advantages.grpo(rng.integers(0, 2, B).astype(np.float32), valid, G))
    b = Batch(
        prompt=rng.integers(3, 64, (N, P)).astype(np.int32) * start,
        prompt_mask=start,
        tokens=rng.integers(3, 64, (B, T)).astype(np.int32) * mask,
        mask=mask,
        valid=valid,
        advantage=(advantage[:, None] * mask).astype(np.float32),
        old_logp=np.zeros((B, T), np.float32),
        old_entropy=np.zeros((B, T), np.float32),
        sampler_logp=np.zeros((B, T), np.float32),
        ref_logp=np.zeros((B, T), np.float32),
        uid=rng.permutation(B).astype(np.uint32),
    )
    logp, entropy = jax.device_get(scoring.token_stats(Transformer(CFG), params(), b, 1.0))

    def near(scale):  # off-policy: ratios from 0.5 to 2
        return (logp + rng.normal(0, scale, (B, T)) * mask).astype(np.float32)

    return b._replace(
        old_logp=near(0.3),
        ref_logp=near(0.3),
        sampler_logp=near(1e-3),
        old_entropy=entropy * 1.02,
        ref_entropy=entropy * 0.9,
    )


def method(name: str) -> Method:
    """A recipe, with shares and bounds at which it changes something in so small a batch."""
    c = config.default()
    config.apply_recipe(c, name)
    with c.unlocked():
        for options in c.algo.transforms.values():
            if "fraction" in options:
                options.fraction = max(options.fraction, 0.1)  # of about a hundred tokens
            if "low" in options:
                options.low, options.high = 0.05, 5.0
    return engine_lib.method_of(c.algo, c.rollout, c.train)


def token_state(how: Method):
    zeros = jnp.zeros((B, T))
    return how.chain.init(token_transforms.TokenGrads(zeros, zeros))


def packed(rows=4) -> Batch:
    """The batch, with its sequences in rows without padding as well."""
    plan = packing.Plan("packed", rows, B // rows, P + T - 1, 0)
    b = batch()
    return b._replace(packed=plan.pack(b.prompt, b.prompt_mask, b.tokens, b.mask))


def distance(a, b) -> float:
    """|a − b| / |b| of two trees."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) / optax.tree.norm(b))
