"""One fixed batch on a mesh: what it scores, selects, learns and decodes. Run by several processes, for the tests.

python -m layouts DATA FSDP TENSOR FILE
"""

import pathlib
import sys

import jax
import numpy as np
import optax
from updates import CFG, G, N, P, T, batch, method, params, token_state

from entropy_rl import config
from entropy_rl.record import checkpoint
from entropy_rl.runtime import distributed
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling.base import Prompts
from entropy_rl.training import update
from entropy_rl.training.engine import Engine

METHOD = "clip_cov"


def build(shape, tensor=0, cfg=CFG, slots=0) -> Engine:
    """The engine of one update of plain SGD, on the first devices; `tensor` and `slots` of the rollout."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = N, G, T
    c.data.max_prompt_len, c.train.updates_per_rollout = P, 1
    c.rollout.tensor, c.rollout.slots = tensor, slots
    return Engine(c, cfg, None, make_mesh(*shape), method(METHOD), optax.sgd(1.0), G)


def prompts() -> Prompts:
    """The batch's prompts."""
    return Prompts(batch().prompt, batch().prompt_mask, np.arange(N, dtype=np.uint32))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


def results(shape, save=None, cfg=CFG, tensor=0) -> dict:
    """Everything as numpy arrays; parameters and their gradient as flat vectors. `save`: a folder for a checkpoint."""
    data, weights, engine = batch(), params(cfg), build(shape, tensor, cfg)
    with engine.on_mesh():
        start = jax.device_put(weights, engine.params_sharding)
        logp, entropy = distributed.fetch(engine.score(start, data))
        greedy = engine.greedy(start, prompts(), jax.random.key(2))
        state, metrics = engine.update(engine.init(start), data, jax.random.key(1), False)
        if save:
            checkpoint.Checkpoints(save, keep=1).save(1, state, {})
        new = distributed.fetch(state.params)
        g, _, _ = update.edit(
            method(METHOD), logp, entropy, data, token_state(method(METHOD)), jax.random.key(1), False
        )
    return {
        "logp": logp,
        "entropy": entropy,
        "selected": np.asarray(g.logp) != 0,
        "kept": np.asarray(distributed.fetch(metrics["tokens/kept_frac"])),
        "norm": np.asarray(distributed.fetch(metrics["grad/norm"])),
        "gradient": flat(weights) - flat(new),
        "params": flat(new),
        "greedy": greedy.tokens,
    }


if __name__ == "__main__":
    distributed.initialize()
    *shape, file = sys.argv[1:]
    found = results(tuple(map(int, shape)), save=pathlib.Path(file).with_suffix(""))
    if distributed.first():
        np.savez(file, **found)
