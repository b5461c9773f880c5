"""The engine: meshes change only rounding, it samples by way of its sampler, and it reads the configuration once."""

import jax
import numpy as np
import optax
import pytest
from samplers import Recorder
from updates import CFG, G, N, P, T, batch, distance, method, packed, params

from entropy_rl import config, loop
from entropy_rl.data import tiny_tokenizer
from entropy_rl.model.transformer import ModelConfig
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling.base import GREEDY, Decoding, Prompts, Sampling
from entropy_rl.sampling.local import LocalSampler
from entropy_rl.sampling.remote import ServerSampler
from entropy_rl.training.engine import Engine


@pytest.mark.parametrize(
    "mesh, layout",
    [
        pytest.param((1, 8, 1), "group", marks=pytest.mark.slow),
        pytest.param((1, 1, 8), "group", marks=pytest.mark.slow),
        ((2, 2, 2), "group"),
        pytest.param((2, 2, 2), "packed", marks=pytest.mark.slow),
    ],
)
def test_meshes_change_only_rounding(mesh, layout):
    c = config.default()
    config.apply_recipe(c, "clip_cov")
    with c.unlocked():
        c.algo.transforms.clip_cov.update(fraction=0.1, low=0.05)
        c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.train.updates_per_rollout = N, G, T, 1
    results = []
    for shape, devices in (((1, 1, 1), jax.devices()[:1]), (mesh, jax.devices())):
        m = make_mesh(*shape, devices=devices)
        engine = Engine(c, CFG, None, m, method("clip_cov"), optax.sgd(1.0), G)
        with engine.on_mesh():
            state = engine.init(jax.device_put(params(), engine.params_sharding))
            b = packed(8) if layout == "packed" and m.size > 1 else batch()
            new, metrics = engine.update(state, b, jax.random.key(1), False)
            results.append((jax.device_get(new.params), jax.device_get(metrics)))
    (want, want_metrics), (got, metrics) = results
    moved = jax.tree.map(np.subtract, want, params())
    assert distance(jax.tree.map(np.subtract, got, params()), moved) < 1e-5
    assert metrics["tokens/kept_frac"] == want_metrics["tokens/kept_frac"] < 1


def engine_of(cfg=CFG, tokenizer=None, **changes) -> Engine:
    """The engine of an update of the fixed batch's shape on one device, with changes to the configuration."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = N, G, T
    c.data.max_prompt_len, c.train.updates_per_rollout = P, 1
    c.update_from_flattened_dict(changes)
    return Engine.of(c, cfg, tokenizer, make_mesh(devices=jax.devices()[:1]))


def test_the_engine_samples_by_way_of_its_sampler():
    engine, prompts, key = engine_of(**{"rollout.temperature": 0.7}), Prompts(*batch()[:2], np.arange(N)), object()
    engine.sampler = recorder = Recorder()

    def done(rows, rollout):
        pass

    out = engine.rollout("params", prompts, key, done=done)
    assert out.tokens.shape == (N * G, T)
    greedy = engine.greedy("params", prompts, key)
    assert greedy.tokens.shape == (N, T)
    decoding = Decoding(Sampling(0.7), T, CFG.eos_ids)
    assert recorder.asked == [
        ("params", prompts, key, G, decoding, done),
        ("params", prompts, key, 1, decoding._replace(sampling=GREEDY), None),
    ]


def test_the_configuration_determines_how_training_samples():
    options = {"rollout.temperature": 0.9, "rollout.top_p": 0.8, "rollout.top_k": 5, "rollout.stop": ("!", "?")}
    engine = engine_of(**options)
    assert engine.decoding == Decoding(Sampling(0.9, 0.8, 5), T, (2,), ("!", "?"))
    assert engine.samples == G and engine.method.temperature == 0.9
    with pytest.raises(ValueError, match=r"rollout\.top_p=0\.0 must be above 0"):
        engine_of(**{"rollout.top_p": 0.0})


def test_the_configuration_determines_the_sampler():
    tokenizer = tiny_tokenizer()
    cfg = ModelConfig(len(tokenizer), 32, 2, 4, 2, 8, 64)
    local = engine_of(cfg, tokenizer, **{"rollout.slots": 3}).sampler
    assert isinstance(local, LocalSampler) and (local.slots, local.measures_entropy) == (3, True)
    remote = engine_of(cfg, tokenizer, **{"rollout.server": "http://here:8000", "rollout.slots": 3}).sampler
    assert isinstance(remote, ServerSampler) and (remote.slots, remote.measures_entropy) == (3, False)
    assert (remote.server.url, remote.model_config, remote.tokenizer) == ("http://here:8000", cfg, tokenizer)


@pytest.mark.slow
def test_the_base_models_forks_are_scored_by_the_reference_policy():
    """Before the first update it is the policy itself, so the update is the one on its own forks, bit for bit."""
    found = {}
    for name in ("forking", "forking_base", "reference_kl"):
        c = config.apply_recipe(config.default(), name)
        c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = N, G, T
        c.data.max_prompt_len, c.train.updates_per_rollout, c.train.micro_batches = P, 1, 2
        engine = Engine.of(c, CFG, None, make_mesh(devices=jax.devices()[:1]))
        with engine.on_mesh():
            state = engine.init(jax.device_put(params(), engine.params_sharding))
            (first,) = loop.with_old_logp(engine, state, [batch()._replace(ref_entropy=None)])
            moved = state._replace(params=jax.tree.map(lambda x: x * 1.1, state.params))
            (later,) = loop.with_old_logp(engine, moved, [first])
            if name == "forking":
                assert first.ref_entropy is None
            else:
                assert np.array_equal(first.ref_entropy, first.old_entropy)
                assert np.array_equal(later.ref_entropy, first.ref_entropy)
                assert not np.array_equal(later.old_entropy, first.old_entropy)
            new, metrics = engine.update(state, first, jax.random.key(1), True)
            found[name] = jax.device_get((new.params, metrics))
    jax.tree.map(np.testing.assert_array_equal, found["forking"], found["forking_base"])
    assert found["forking"][1]["tokens/kept_frac"] == pytest.approx(0.2, abs=0.02)
