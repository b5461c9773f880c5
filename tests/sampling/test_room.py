"""How many slots fit: round numbers, chosen once per shape, and charged for all that moving and drawing holds."""

import types

import jax
import numpy as np
import pytest

from entropy_rl import config, loop
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params
from entropy_rl.sampling import batching, room
from entropy_rl.sampling.base import Decoding, Forks, Prompts, Sampling
from entropy_rl.sampling.local import LocalSampler

CFG = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
PLAIN = Decoding(Sampling(), 20, ())
MODEL = Transformer(CFG)


class Keys(types.SimpleNamespace):
    """The prompts' keys on a device that reports its memory; on a CPU none does."""

    def __init__(self, free, platform="gpu", shape=(2, 16, 2, 8, 6), kind="H100"):
        stats = None if free is None else {"bytes_limit": 10**9, "bytes_in_use": 10**9 - free}
        device = types.SimpleNamespace(id=0, platform=platform, device_kind=kind, memory_stats=lambda: stats)
        sharding = types.SimpleNamespace(addressable_devices=[device], shard_shape=lambda shape: shape)
        super().__init__(shape=shape, sharding=sharding)


def chosen(free, shards=1, n=64, decoding=PLAIN, widths=None, **more):
    return room.choose(MODEL, Keys(free, **more), n, decoding, shards, {} if widths is None else widths)


def test_the_width_is_all_responses_or_a_power_of_two_per_shard():
    B = 16 * 64
    assert chosen(10**9) == B
    for shards in (1, 2, 8):
        found = {chosen(int(free), shards) for free in np.geomspace(1e4, 1e8, 200)}
        rest = {w // shards for w in found - {B}}
        assert all(w & (w - 1) == 0 for w in rest) and len(rest) > 3 and min(rest) == 1
    assert chosen(10**9, n=63) == 16 * 63  # what fits at once need not be round: nothing depends on free memory then


def test_a_little_more_memory_seldom_changes_the_width():
    """A hundred amounts of free memory, each 1% above the one before, are 2.7 times as much: two or three widths."""
    assert len({chosen(int(10**6 * 1.01**i)) for i in range(100)}) <= 3


def test_a_width_is_chosen_once_for_each_shape_and_device():
    widths = {}
    first = chosen(10**6, widths=widths)
    assert len(widths) == 1 and chosen(10**8, widths=widths) == first  # more memory later changes nothing
    truncated = PLAIN._replace(sampling=Sampling(top_p=0.9))
    forked = PLAIN._replace(sampling=Sampling(forks=Forks(0.5, 2.0)))
    others = dict(n=32), dict(decoding=PLAIN._replace(max_tokens=21)), dict(decoding=truncated), dict(decoding=forked)
    for count, other in enumerate((*others, dict(shards=2), dict(kind="H200")), 2):
        chosen(10**6, widths=widths, **other)
        assert len(widths) == count
    assert chosen(10**6, widths=widths, platform="cpu", kind="cpu") == 16 * 64 and len(widths) == count
    assert chosen(None, widths=widths, kind="one without figures") == 16 * 64 and len(widths) == count


def test_what_a_slot_is_charged_for():
    model, T = Transformer(SHAPES["Qwen/Qwen2.5-0.5B"], np.dtype("bfloat16")), 256
    V, token = 151936, 2 * 24 * 2 * 64 * 2
    decoding = Decoding(Sampling(), T, ())
    charged = room.slot_bytes(model, 128, 1, decoding, 2)
    assert charged > (128 + T) * token + 7 * 4 * V  # a step's arrays
    assert charged > (2 * 128 + T + T / 2) * token + 2 * 4 * V  # both caches while one takes the other's place
    assert room.slot_bytes(model, 128, 8, decoding, 2) < charged
    truncated = decoding._replace(sampling=Sampling(top_k=5))
    assert room.slot_bytes(model, 128, 1, truncated, 2) > room.slot_bytes(model, 128, 1, decoding, 2) + 4 * V
    forked = decoding._replace(sampling=Sampling(forks=Forks(0.5, 2.0)))
    assert room.slot_bytes(model, 128, 1, forked, 2) == charged  # tests/preflight/test_slots_fit.py compiles both


def steps(monkeypatch, slots=0, widths=None, N=4):
    """The widths of a rollout's chunks on a CPU, and the rollout."""
    seen, advance = [], batching._advance

    def spy(model, weights, state, alive, **how):
        seen.append(len(alive))
        return advance(model, weights, state, alive, **how)

    monkeypatch.setattr(batching, "_advance", spy)
    tokens = np.random.default_rng(0).integers(10, 64, (N, 6)).astype(np.int32)
    prompts = Prompts(tokens, np.ones_like(tokens), np.arange(N, dtype=np.uint32))
    sampler = LocalSampler(MODEL, None, slots, widths={} if widths is None else widths)
    decoding = Decoding(Sampling(), 60, tuple(range(3)))
    out = sampler.sample(init_params(CFG, jax.random.key(0)), prompts, jax.random.key(1), n=8, decoding=decoding)
    monkeypatch.undo()
    return seen, out


@pytest.mark.slow
def test_a_run_takes_the_width_that_it_was_given_back(monkeypatch):
    free, all_at_once = steps(monkeypatch)
    kept, out = steps(monkeypatch, widths={"4x8 responses of 6+60 tokens, float32, 1 of cpu": 8})
    assert free[0] == 32 and kept[0] == 8
    assert np.array_equal(out.tokens, all_at_once.tokens) and np.array_equal(out.mask, all_at_once.mask)


def test_an_odd_width_halves_too(monkeypatch):
    odd, _ = steps(monkeypatch, slots=7, N=1)
    assert odd[0] == 7 and odd[-1] == 1


@pytest.mark.slow
def test_checkpoints_hold_the_widths_and_give_them_back(tmp_path, monkeypatch):
    c = config.default()
    c.model.source, c.data.max_prompt_len, c.rollout.max_tokens = "tiny", 40, 8
    c.rollout.prompts, c.rollout.samples, c.train.updates_per_rollout, c.eval.every = 8, 2, 1, 0
    made, prepare = [], loop.prepare

    def kept(c):
        made.append(prepare(c))
        return made[-1]

    def chosen(c):
        setup = kept(c)
        setup.engine.sampler.widths["a shape"] = 64  # as a rollout does on a device that reports its memory
        return setup

    for steps, prepared in ((1, chosen), (2, kept), (3, kept)):
        monkeypatch.setattr(loop, "prepare", prepared)
        c.train.steps = steps
        loop.run(c, str(tmp_path), force=True)
    assert [setup.engine.sampler.widths for setup in made] == [{"a shape": 64}] * 3
