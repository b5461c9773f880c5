"""The four notebook calls: a model with its tokenizer, to look at logits, to score, to sample and to save.

Shapes: B rows, S positions, V vocabulary, N prompts, P prompt positions. Logs are natural.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.data import encode_prompts
from entropy_rl.model import decode, head, lora
from entropy_rl.model.hf import save_folder
from entropy_rl.model.precision import compute_dtype, head_dtype, held_in, precision
from entropy_rl.model.source import load_model
from entropy_rl.model.transformer import ModelConfig, Params, Transformer, head_inputs, positions
from entropy_rl.record import metrics
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.runtime.files import expand, refuse_url
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling.base import Decoding, Prompts, Response, Rollout, Sampling, responses
from entropy_rl.sampling.local import LocalSampler
from entropy_rl.training import engine as engine_lib

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLOAT32 = np.dtype(np.float32)
_BUCKET = 32  # prompt lengths are rounded up to a multiple, so that few shapes are compiled


class Score(NamedTuple):
    """Statistics of given tokens, each given the tokens before it; 0 at the first one and at masked ones.

    Attributes:
        logp: f32[B, S], nats.
        entropy: f32[B, S], nats.
    """

    logp: jax.Array
    entropy: jax.Array


class Policy:
    """A language model as a policy.

    Attributes:
        cfg: the decoder's shape.
        params: its parameters, a nested dict of arrays: float32, or already in the dtype that the model computes in.
        tokenizer: a transformers tokenizer.
        model: the decoder.
        sampler: makes its responses.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        params: Params,
        tokenizer: "PreTrainedTokenizerBase",
        dtype: np.dtype = FLOAT32,
        head_dtype: np.dtype | None = None,
    ):
        self.cfg, self.params, self.tokenizer = cfg, params, tokenizer
        self.model = Transformer(cfg, dtype, unroll=decode.unrolled(jax.devices()[0]), head_dtype=head_dtype)
        self.sampler = LocalSampler(self.model, tokenizer)

    def logits(self, tokens_BxS: ArrayLike, mask_BxS: ArrayLike) -> jax.Array:
        """f32[B, S, V], for left or right padding; the values at masked positions mean nothing."""
        with precision(self.model.dtype):
            return _logits(self.model, self.params, *_int32(tokens_BxS, mask_BxS))

    def score(self, tokens_BxS: ArrayLike, mask_BxS: ArrayLike, temperature: float = 1.0) -> Score:
        """Log-probability and entropy of every token, without ever holding [B, S, V]."""
        with precision(self.model.dtype):
            stats = _score(self.model, self.params, *_int32(tokens_BxS, mask_BxS), temperature=float(temperature))
        return Score(*stats)

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 8,
        max_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
    ) -> list[list[Response]]:
        """Samples n responses to each prompt. The same seed and prompt give the same responses.

        Args:
            prompts: N texts, used as they are (apply a chat template first if the model wants one).
            n: responses per prompt.
            max_tokens: the length at which a response is cut.
            temperature: 0 is greedy.
            seed: of the draws.
            top_p: truncation of the draws; logp and entropy remain those of the whole distribution.
            top_k: likewise; 0: off.
            stop: texts that end a response, which keeps them.

        Raises:
            ValueError: Prompts that are not a list, sampling that makes no distribution, or more tokens than the
                model has positions.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of texts, got the text {prompts!r}")
        if not len(prompts):
            return []
        sampling = Sampling(temperature, top_p, top_k).check()
        longest = max(len(self.tokenizer(text)["input_ids"]) for text in prompts)
        if longest + max_tokens > self.cfg.max_positions:
            raise ValueError(
                f"the longest prompt has {longest} tokens; with max_tokens={max_tokens} that is more than the model's "
                f"{self.cfg.max_positions} positions"
            )
        width = -(-(longest + 1) // _BUCKET) * _BUCKET
        encoded = Prompts(
            *encode_prompts(self.tokenizer, prompts, width, vocab_size=self.cfg.vocab_size), _uids(prompts)
        )
        decoding = Decoding(sampling, max_tokens, tuple(self.cfg.eos_ids), tuple(stop))
        flat = responses(self.rollout(encoded, jax.random.key(seed), n=n, decoding=decoding), self.tokenizer)
        return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]

    def rollout(self, prompts: Prompts, key: jax.Array, *, n: int, decoding: Decoding) -> Rollout:
        """Samples n responses to each prompt, as arrays on the host; see `sampling/base.py: Sampler.sample`."""
        with precision(self.model.dtype):
            return self.sampler.sample(self.params, prompts, key, n=n, decoding=decoding)

    def save(self, folder: epath.PathLike) -> None:
        """Writes a Hugging Face folder, which transformers and `load` read, in the parameters' own dtype."""
        save_folder(folder, self.cfg, self.params, self.tokenizer)


def _uids(prompts: Sequence[str]) -> np.ndarray:
    """u32[N]: a prompt's draws depend on its text and on how often it came before, not on its row."""
    seen: dict[str, int] = {}
    uids = []
    for text in prompts:
        seen[text] = seen.get(text, -1) + 1
        uids.append(zlib.crc32(f"{seen[text]}:{text}".encode("utf-8", "surrogatepass")))
    return np.array(uids, np.uint32)


def _int32(tokens_BxS: ArrayLike, mask_BxS: ArrayLike) -> tuple[jax.Array, jax.Array]:
    tokens, mask = jnp.asarray(tokens_BxS, jnp.int32), jnp.asarray(mask_BxS, jnp.int32)
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} must both be [B, S]")
    return tokens, mask


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: Transformer, params: Params, tokens_BxS: jax.Array, mask_BxS: jax.Array) -> jax.Array:
    hidden, _ = model.apply({"params": params}, tokens_BxS, positions(mask_BxS), mask_BxS)
    hidden, W_DxV = head_inputs(model, params, hidden)
    precision = head.exactly(W_DxV.dtype)
    return jnp.einsum("bsd,vd->bsv", hidden, W_DxV.T, precision=precision, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def _score(
    model: Transformer, params: Params, tokens_BxS: jax.Array, mask_BxS: jax.Array, temperature: float
) -> tuple[jax.Array, ...]:
    hidden, _ = model.apply({"params": params}, tokens_BxS, positions(mask_BxS), mask_BxS)
    known = mask_BxS[:, 1:] * mask_BxS[:, :-1]  # a first token has nothing before it
    hidden, W_DxV = head_inputs(model, params, hidden[:, :-1])
    stats = head.logp_and_entropy(hidden, W_DxV, tokens_BxS[:, 1:], temperature, known)
    return tuple(jnp.pad(x, ((0, 0), (1, 0))) for x in stats)


def load(source: str, dtype: str = "float32", step: int | None = None) -> Policy:
    """See `entropy_rl.load`."""
    source = expand(source)
    if not is_run(source):
        if step is not None:
            raise ValueError(f"step={step}: {source} is no run directory, and has no steps")
        cfg, params, tokenizer = load_model(source, head_dtype(dtype))
        return Policy(cfg, params, tokenizer, compute_dtype(dtype), head_dtype(dtype))
    return load_run(source, dtype, step)


def load_run(workdir: str, dtype: str, step: int | None = None) -> Policy:
    """The policy of a run directory (`read_run`), on the first device whatever mesh it was trained on."""
    run = read_run(workdir, make_mesh(devices=jax.local_devices()[:1]), step, head_dtype(dtype))
    params = held_in(head_dtype(dtype), jax.device_put(run.params, jax.local_devices()[0]))
    return Policy(run.model_config, params, run.tokenizer, compute_dtype(dtype), head_dtype(dtype))


def is_run(source: str) -> bool:
    """Whether a source is a run directory.

    Raises:
        ValueError: If it is a web address.
    """
    refuse_url("model.source", source)
    try:
        return bool(source) and (epath.Path(source) / "checkpoints").is_dir()
    except (KeyError, ImportError):  # a file system that is not known or not installed
        return False


class TrainedRun(NamedTuple):
    """The policy of a run directory.

    Attributes:
        model_config: the decoder's shape.
        tokenizer: a transformers tokenizer.
        params: the parameters, on a mesh.
    """

    model_config: ModelConfig
    tokenizer: "PreTrainedTokenizerBase"
    params: Params


def config_of(workdir: str) -> ConfigDict:
    """The configuration of a run directory, over the defaults: a run of an earlier version lacks the newer fields."""
    c, saved = config_lib.default(), metrics.read_config(workdir)
    with c.unlocked():
        for part in saved.get("algo", {}).keys() & c.algo.keys():
            if isinstance(c.algo[part], ConfigDict):  # one with another name has other options: it is not merged
                del c.algo[part]
        c.update(ConfigDict(saved))
    return c


def read_run(workdir: str, mesh: Mesh, step: int | None = None, dtype: np.dtype = FLOAT32) -> TrainedRun:
    """The policy of a run directory, its parameters on the mesh, with adapters merged into them.

    Args:
        workdir: the run directory.
        mesh: where the parameters are placed.
        step: the step whose checkpoint is taken; None: the newest sound one.
        dtype: that of merged parameters; those of a run without adapters are as they were saved.

    Raises:
        ValueError: No checkpoint has been finished yet, or none of that step.
        RuntimeError: The checkpoint is damaged, or all are.
    """
    c = config_of(workdir)
    c.rollout.tensor = 0
    model_config, tokenizer, _ = engine_lib.load(c.model, c.seed)
    engine = engine_lib.Engine.of(c, model_config, tokenizer, mesh)
    wanted = {"params": engine.abstract_state.params}  # the optimiser's state is two to three times as large
    checkpoints = Checkpoints(epath.Path(workdir) / "checkpoints")
    if model_config.lora:  # frozen weights have the dtype that the run computed in, maybe on another device
        wanted = checkpoints.as_saved(wanted, step)
    restored = checkpoints.restore(wanted, step=step, partial=True)
    if restored is None:
        raise ValueError(f"{workdir}/checkpoints holds no finished checkpoint yet")
    params = restored[0]["params"]
    if model_config.lora:
        plain = lora.split(engine.params_sharding)[1]
        params = jax.jit(functools.partial(lora.merged, model_config, dtype=dtype), out_shardings=plain)(params)
    return TrainedRun(lora.plain(model_config), tokenizer, params)
