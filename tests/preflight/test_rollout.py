"""The phases of a rollout fit together."""

import jax
import pytest

from entropy_rl import config
from entropy_rl.preflight import programs, rollout
from entropy_rl.preflight.sizes import bytes_per_chip, cache_bytes


def kv_bytes(kv) -> float:
    return bytes_per_chip((kv.key, kv.value))


@pytest.mark.parametrize("wanted, fsdp", [(0, 2), (20, 2), (20, 4)])
def test_the_phases_of_a_rollout_follow_one_another(wanted, fsdp):
    """On CPU devices an admission places the slots as preflight assumes, and a chunk writes the cache in place."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 8, 4, 150, 16
    c.rollout.slots, c.mesh.data, c.mesh.fsdp, c.mesh.tensor, c.rollout.tensor = wanted, 2, fsdp, 4 // fsdp, 2
    c.eval.batch = c.warmup.batch = 8
    c.train.updates_per_rollout, c.model.source = 1, "tiny"
    run = programs.prepare(c, jax.devices()[:8])
    assert run.slots == (20 if wanted else 32)
    phases = rollout.phases(run)
    admit, chunk = phases["admit"], phases["decode"]
    made, _ = admit.compile()[1].output_shardings
    done = chunk.compile()[1]
    before, full = admit.args[2], chunk.args[1]
    assert before.cache.segment.shape[1] == (160 if wanted else 128)
    assert full.cache.segment.shape == (len(full.age), 160)
    assert full.prefix.segment.shape[0] == (20 if wanted else 8)
    for want, got in zip(jax.tree.leaves(full.cache), jax.tree.leaves(made.cache), strict=True):
        assert got.is_equivalent_to(want.sharding, want.ndim)
    assert done.memory_analysis().alias_size_in_bytes >= bytes_per_chip(full.cache)
    model = run.engine.model_config
    token = 2 * model.n_layers * model.n_kv_heads * model.head_dim * 4 / 8
    total = kv_bytes(admit.args[1].prefix) + kv_bytes(full.prefix) + kv_bytes(full.cache)
    assert total == cache_bytes(run) == token * ((8 + (20 if wanted else 8)) * 16 + len(full.age) * 160)
