"""The four notebook calls: a model with its tokenizer, to look at logits, to score, to sample and to save.

Shapes: B rows, S positions, V vocabulary, N prompts, P prompt positions. Logs are natural.
"""

import functools
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.data import encode_prompts
from entropy_rl.model import head
from entropy_rl.model.hf import save_folder
from entropy_rl.model.source import load_model
from entropy_rl.model.transformer import ModelConfig, Transformer, head_weight, positions
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling import batching as rollouts
from entropy_rl.sampling import slots as sampler
from entropy_rl.training import engine

_BUCKET = 32  # prompt lengths are rounded up to a multiple, so that few shapes are compiled


class Response(NamedTuple):
    """One sampled response.

    Attributes:
        text: decoded, without special tokens.
        tokens: i32[t], the end-of-sequence token included.
        logp: f32[t], log-probability of each token at the sampling temperature, nats.
        entropy: f32[t], of the distribution that each was drawn from, nats.
        finished: it ended by itself; False: cut at max_tokens.
    """

    text: str
    tokens: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray
    finished: bool


class Score(NamedTuple):
    """f32[B, S] each, nats: position t given the positions before it; 0 at the first and where masked."""

    logp: jax.Array
    entropy: jax.Array


class Policy:
    """A language model as a policy.

    Attributes:
        cfg: the decoder's shape.
        params: its parameters, a nested dict of float32 arrays.
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, cfg: ModelConfig, params, tokenizer, dtype=jnp.float32):
        self.cfg, self.params, self.tokenizer = cfg, params, tokenizer
        self.model = Transformer(cfg, dtype, unroll=jax.default_backend() == "cpu")

    def logits(self, tokens_BxS, mask_BxS) -> jax.Array:
        """f32[B, S, V], for left or right padding; what stands at masked positions means nothing."""
        with engine.precision(self.model.dtype):
            return _logits(self.model, self.params, *_int32(tokens_BxS, mask_BxS))

    def score(self, tokens_BxS, mask_BxS, temperature: float = 1.0) -> Score:
        """Log-probability and entropy of every token, without [B, S, V]."""
        with engine.precision(self.model.dtype):
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
        """n responses to each prompt. The same seed and prompt give the same responses.

        Args:
            prompts: N texts, taken as they are (apply a chat template first where the model wants one).
            n: responses a prompt.
            max_tokens: where a response is cut.
            temperature: 0 is greedy.
            seed: of the draws.
            top_p, top_k: truncation of the draws; logp and entropy stay those of the whole distribution.
            stop: texts that end a response, which keeps them.

        Raises:
            ValueError: prompts that are no list, sampling that makes no distribution, more tokens than the model has
                positions.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of texts, got the text {prompts!r}")
        if not len(prompts):
            return []
        sampling = sampler.Sampling(temperature, top_p, top_k).check()
        longest = max(len(self.tokenizer(text)["input_ids"]) for text in prompts)
        if longest + max_tokens > self.cfg.max_positions:
            raise ValueError(
                f"the longest prompt has {longest} tokens; with max_tokens={max_tokens} that is more than the model's "
                f"{self.cfg.max_positions} positions"
            )
        width = -(-(longest + 1) // _BUCKET) * _BUCKET
        tokens_NxP, mask_NxP = encode_prompts(self.tokenizer, prompts, width)
        out = self.rollout(
            tokens_NxP,
            mask_NxP,
            _uids(prompts),
            jax.random.key(seed),
            n=n,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
        )
        flat = responses(out, self.tokenizer)
        return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]

    def rollout(
        self,
        tokens_NxP,
        mask_NxP,
        uid_N,
        key,
        *,
        n: int,
        max_tokens: int,
        sampling: sampler.Sampling,
        stop: Sequence[str] = (),
        slots: int = 0,
    ) -> sampler.Rollout:
        """n responses to each left-padded prompt, as arrays on the host; see `rollouts.sample`."""
        with engine.precision(self.model.dtype):
            return rollouts.sample(
                self.model,
                self.params,
                tokens_NxP,
                mask_NxP,
                uid_N,
                key,
                n=n,
                how=sampler.How(sampling, max_tokens, tuple(self.cfg.eos_ids)),
                slots=slots,
                watch=rollouts.Watch(rollouts.stopper(self.tokenizer, stop)),
            )

    def save(self, folder) -> None:
        """Writes a Hugging Face folder, which transformers and `load` read."""
        save_folder(folder, self.cfg, self.params, self.tokenizer)


def responses(out: sampler.Rollout, tokenizer) -> list[Response]:
    """A rollout (on the host) as a list of B responses."""
    found = []
    for b, length in enumerate(np.asarray(out.mask).sum(axis=1)):
        tokens = np.asarray(out.tokens[b, :length])
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        found.append(
            Response(
                text,
                tokens,
                np.asarray(out.logp[b, :length]),
                np.asarray(out.entropy[b, :length]),
                bool(out.finished[b]),
            )
        )
    return found


def _uids(prompts: Sequence[str]) -> np.ndarray:
    """u32[N]: a prompt's draws hang on its text, and on how often it came before, not on its row."""
    seen: dict[str, int] = {}
    uids = []
    for text in prompts:
        seen[text] = seen.get(text, -1) + 1
        uids.append(zlib.crc32(f"{seen[text]}:{text}".encode("utf-8", "surrogatepass")))
    return np.array(uids, np.uint32)


def _int32(tokens_BxS, mask_BxS):
    tokens_BxS, mask_BxS = jnp.asarray(tokens_BxS, jnp.int32), jnp.asarray(mask_BxS, jnp.int32)
    if tokens_BxS.ndim != 2 or tokens_BxS.shape != mask_BxS.shape:
        raise ValueError(f"tokens {tokens_BxS.shape} and mask {mask_BxS.shape} must both be [B, S]")
    return tokens_BxS, mask_BxS


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, tokens_BxS, mask_BxS):
    hidden, _ = model.apply({"params": params}, tokens_BxS, positions(mask_BxS), mask_BxS)
    return jnp.einsum(
        "bsd,vd->bsv", hidden, head_weight(params).astype(hidden.dtype), preferred_element_type=jnp.float32
    )


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def _score(model, params, tokens_BxS, mask_BxS, temperature):
    hidden, _ = model.apply({"params": params}, tokens_BxS, positions(mask_BxS), mask_BxS)
    known = mask_BxS[:, 1:] * mask_BxS[:, :-1]  # a first token has nothing before it
    stats = head.logp_and_entropy(
        hidden[:, :-1], head_weight(params).astype(hidden.dtype).T, tokens_BxS[:, 1:], temperature, known
    )
    return tuple(jnp.pad(x, ((0, 0), (1, 0))) for x in stats)


def load(source: str, dtype: str = "float32") -> Policy:
    """See `entropy_rl.load`."""
    if not is_run(source):
        cfg, params, tokenizer = load_model(source)
        return Policy(cfg, params, tokenizer, engine.compute_dtype(dtype))
    return load_run(source, dtype)


def load_run(workdir: str, dtype: str) -> Policy:
    """The policy of a run directory's newest sound checkpoint, on the first device whatever mesh it was trained on."""
    cfg, tokenizer, params = read_run(workdir, make_mesh(devices=jax.local_devices()[:1]))
    return Policy(cfg, jax.device_put(params, jax.local_devices()[0]), tokenizer, engine.compute_dtype(dtype))


def is_run(source: str) -> bool:
    """Whether a source is a run directory."""
    return (epath.Path(source) / "checkpoints").is_dir()


def read_run(workdir: str, mesh: Mesh) -> tuple[ModelConfig, Any, Any]:
    """(ModelConfig, tokenizer, parameters on the mesh) of a run directory's newest sound checkpoint.

    Raises ValueError where nothing has been saved yet.
    """
    config = config_lib.default()
    with config.unlocked():  # over the defaults: a run of an earlier version lacks what came since
        config.update(ConfigDict(json.loads((epath.Path(workdir) / "config.json").read_text())))
        config.rollout.tensor = 0
    cfg, tokenizer, _ = engine.load(config)
    e = engine.build(config, cfg, tokenizer, mesh)
    restored = Checkpoints(epath.Path(workdir) / "checkpoints").restore(e.abstract_state)
    if restored is None:
        raise ValueError(f"{workdir}/checkpoints holds no finished checkpoint yet")
    return cfg, tokenizer, restored[0].params
