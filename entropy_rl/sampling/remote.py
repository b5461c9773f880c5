"""The sampler that asks a server, vLLM or SGLang, for every response.

Shapes: N prompts, P prompt positions, n samples per prompt, B = N·n responses, T response positions. All on the host.

One request makes one response. A server cannot return the entropy of a distribution: it is NaN here, and whoever needs
it scores the responses (`training/experience.py`).
"""

import contextlib
import dataclasses
import functools
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model.transformer import ModelConfig, Params
from entropy_rl.runtime import preemption
from entropy_rl.sampling.base import Decoding, Done, Prompts, Rollout, stopper
from entropy_rl.sampling.client import Server, untouched
from entropy_rl.sampling.draw import row_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 256  # requests in flight if rollout.slots is 0
GAP = 0.5  # nats per token, mean: engines and precisions differ by hundredths, other weights by more than this


@dataclasses.dataclass(frozen=True)
class ServerSampler:
    """Makes responses by way of a server, see `base.Sampler`. logp is the server's, entropy NaN.

    Attributes:
        server: the server.
        model_config: the shape of the parameters.
        tokenizer: makes text of tokens.
        slots: requests in flight; 0: AT_ONCE.
        dtype: that in which parameters are handed over, since the trainer computes in no other; None: their own.
        widths: see `base.Sampler`; always empty.
    """

    server: Server
    model_config: ModelConfig
    tokenizer: "PreTrainedTokenizerBase"
    slots: int = 0
    dtype: np.dtype | None = None
    widths: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)

    measures_entropy = False

    def sample(
        self,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        n: int,
        decoding: Decoding,
        done: Done | None = None,
    ) -> Rollout:
        """Makes n responses to each prompt, see `base.Sampler.sample`.

        Each response has its own seed from (key, prompt, sample), so a server draws the same again if it computes the
        same again.

        Args:
            params: handed to the server first, unless it keeps its own weights (`Server.weights`).
            prompts: as in the protocol.
            key: as in the protocol.
            n: as in the protocol.
            decoding: as in the protocol.
            done: as in the protocol.

        Raises:
            ValueError: The server refuses, has been away for too long, or returns no token ids with their logp.
        """
        if self.server.weights:
            self.server.give(self.model_config, params, self.tokenizer, self.dtype)
        out = Rollout.empty(len(prompts.tokens_NxP) * n, decoding.max_tokens)
        # no `with`: it would wait for every request in flight after one has failed
        pool = ThreadPoolExecutor(max(1, min(self.slots or AT_ONCE, len(out.tokens))))
        try:
            self._fill(out, pool, prompts, key, n, decoding, done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # requests not sent yet need no answer
        return out

    def _fill(
        self,
        out: Rollout,
        pool: ThreadPoolExecutor,
        prompts: Prompts,
        key: jax.Array,
        n: int,
        decoding: Decoding,
        done: Done | None,
    ) -> None:
        """Sends all requests and writes the responses to `out` as they come."""
        B = len(out.tokens)
        keys = row_keys(key, jnp.asarray(prompts.uid_N, jnp.uint32), n)
        seeds = (np.asarray(jax.vmap(jax.random.bits)(keys)) >> 1).tolist()  # engines want them positive
        rows = zip(np.asarray(prompts.tokens_NxP), np.asarray(prompts.mask_NxP), strict=True)
        texts = [tokens[mask > 0].tolist() for tokens, mask in rows]
        body, stop = _request(decoding), stopper(self.tokenizer, decoding.stop)

        def ask(b: int) -> tuple[list[int], list[float], bool]:
            choice = self.server.complete(texts[b // n], seed=seeds[b], **body)
            tokens, logp = self.server.tokens(choice)
            kept = stop(np.asarray(tokens), 0) if stop else None
            return tokens[:kept], logp[:kept], kept is not None or choice["finish_reason"] == "stop"

        answered: queue.SimpleQueue[tuple[int, Future]] = queue.SimpleQueue()

        def answer(b: int, future: Future) -> None:
            answered.put((b, future))

        for b in range(B):
            pool.submit(ask, b).add_done_callback(functools.partial(answer, b))
        left = B
        while left:
            over = [_next(answered)]
            while not answered.empty():
                over.append(answered.get())
            for b, future in over:
                tokens, logp, out.finished[b] = future.result()
                out.tokens[b, : len(tokens)], out.logp[b, : len(tokens)] = tokens, logp
                out.entropy[b, : len(tokens)], out.mask[b, : len(tokens)] = np.nan, 1
            left -= len(over)
            if done:
                done([b for b, _ in over], out)


def _next(answered: queue.SimpleQueue[tuple[int, Future]]) -> tuple[int, Future]:
    """The next answer, waited for; the run may be stopped meanwhile."""
    while True:
        with contextlib.suppress(queue.Empty):
            return answered.get(timeout=0.2)
        preemption.STOP.look_alone()


def _request(decoding: Decoding) -> dict[str, Any]:
    """The fields of a request that all responses share.

    Raises:
        ValueError: The sampling has forks.
    """
    if decoding.sampling.forks is not None:
        raise ValueError(
            "--fork_threshold: a server draws all tokens at one temperature, so it cannot draw forks at another; "
            "leave --server out"
        )
    return untouched() | {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.sampling.temperature,
        "top_p": decoding.sampling.top_p,
        "top_k": decoding.sampling.top_k or -1,
        "stop": list(decoding.stop),
        "stop_token_ids": list(decoding.eos_ids),
    }


def check_gap(server: str, trainer_logp_BxT: np.ndarray, server_logp_BxT: np.ndarray, mask_BxT: np.ndarray) -> None:
    """Refuses logp that are not those of the weights that the server was given.

    Args:
        server: its address.
        trainer_logp_BxT: f32[B, T], nats.
        server_logp_BxT: f32[B, T], nats, of the same tokens.
        mask_BxT: i32[B, T].

    Raises:
        ValueError: The mean absolute gap per token is above GAP, or NaN.
    """
    mask = mask_BxT > 0
    gap = float(np.abs(trainer_logp_BxT - server_logp_BxT)[mask].mean()) if mask.any() else 0.0
    if not gap <= GAP:
        raise ValueError(
            f"rollout.server={server!r}: its logprobs are {gap:.2f} nats per token from the trainer's, more than "
            f"{GAP}: it serves another model or other weights, or changes the logits (a penalty, a quantised cache)"
        )
