"""Responses from an engine that users already run: a server of OpenAI's completions, vLLM or SGLang.

Shapes: N prompts, P prompt positions, n samples a prompt, B = N·n responses, T response positions. All on the host.

A response is one request: token ids go there and token ids come back, each with its logp. Text would not do: made into
tokens again it is not always the tokens that were drawn. The entropy of a distribution is not to be had from a server:
it is NaN here, and whoever needs it scores the responses (`experience.collect`).
"""

import functools
import http.client
import json
import os
import pathlib
import queue
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model.hf import save_folder
from entropy_rl.sampling import batching as rollouts
from entropy_rl.sampling import slots as sampler

PATIENCE = 600.0  # seconds that a server may be away
ANSWER = 7200.0  # seconds until an answer, a long response's place in the queue with it
AT_ONCE = 256  # requests, where rollout.slots does not say
AWAY = (429, 502, 503, 504)
GAP = 0.5  # nats a token, mean: engines and precisions differ by hundredths, other weights by more than this
# How a server is told to read a folder: SGLang's own route, and vLLM's, which is there in development mode.
TAKE: dict[str, Callable[[str], dict]] = {
    "/update_weights_from_disk": lambda folder: {"model_path": folder},
    "/collective_rpc": lambda folder: {"method": "reload_weights", "kwargs": {"weights_path": folder}},
}
FORGET = "/reset_prefix_cache"  # vLLM's: keys and values of the old weights. SGLang forgets by itself


class Server:
    """One server, and which parameters it was given last.

    Attributes:
        url: without the /v1.
        weights: a folder that this machine and the server's both see; "": the server keeps its own weights.

    Raises:
        ValueError: no http(s) address.
    """

    def __init__(self, url: str, weights: str = "", patience: float = PATIENCE):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"rollout.server={url!r} must be an address like http://localhost:8000")
        self.url, self.weights, self._patience = url.rstrip("/").removesuffix("/v1"), weights, patience
        key = os.environ.get("ENTROPY_RL_SERVER_KEY")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._has: Any = None

    def complete(self, prompt: Sequence[int], **body) -> dict[str, Any]:
        """The one choice of a completion that begins after these token ids."""
        told = {"model": self._model, "prompt": list(prompt), "logprobs": 0, "return_token_ids": True} | body
        status, answer = self._call("/v1/completions", told)
        if status != 200:
            raise ValueError(f"rollout.server={self.url!r} refuses a request ({status}): {answer}")
        (choice,) = answer["choices"]
        return choice

    def check(self, prompt: Sequence[int], temperature: float) -> None:
        """Asks for one token, to know early what would fail late.

        The logp of a token must be that of the distribution that it was drawn from. vLLM gives it before the
        temperature unless told otherwise. Temperature scales the differences between log-probabilities, so that those
        between the likeliest tokens tell which ones came back.

        Raises:
            ValueError: no server, no token ids with their logp, or logp before the temperature.
        """
        ask = lambda t: self.complete(prompt, max_tokens=1, temperature=t, logprobs=5, **_untouched())
        choice = ask(temperature)
        self._tokens(choice)
        if not choice["logprobs"].get("top_logprobs"):
            raise ValueError(f"rollout.server={self.url!r} gives no top_logprobs where five are asked for")
        spread = lambda c: np.ptp(np.sort(list(c["logprobs"]["top_logprobs"][0].values()))[-5:])
        got, at_one = spread(choice), spread(ask(1.0))
        if temperature != 1 and abs(got - at_one) < abs(got - at_one / temperature):
            raise ValueError(
                f"rollout.server={self.url!r} gives logprobs from before rollout.temperature={temperature}, with which "
                "the importance correction would be wrong; start vLLM with --logprobs-mode processed_logprobs"
            )

    def give(self, cfg, params, tokenizer) -> None:
        """Hands the parameters over as a Hugging Face folder, unless the server has them.

        Each goes into a folder of a new name, so that no file system shows the server an old file; the one before is
        removed.

        Raises:
            ValueError: the server knows no way to take weights, or could not.
        """
        small = min(jax.tree.leaves(params), key=lambda x: x.size)  # stands for all: an update makes new arrays
        if small is self._has:
            return
        folder = pathlib.Path(self.weights).absolute() / f"weights-{time.time_ns()}"
        save_folder(folder, cfg, params, tokenizer)
        for route, body in TAKE.items():
            status, answer = self._call(route, body(str(folder)))
            if status not in (404, 405):
                break
        else:
            raise ValueError(
                f"rollout.server={self.url!r} has neither of {', '.join(TAKE)}, so that it cannot take weights; start "
                "vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, or take SGLang"
            )
        if status == 200 and route == "/collective_rpc":
            status, answer = self._call(FORGET, {})
        if status != 200 or (isinstance(answer, dict) and answer.get("success") is False):
            raise ValueError(
                f"rollout.server={self.url!r} did not take {folder} ({status}): {answer}\nrollout.server_weights="
                f"{self.weights!r} must be a folder that the server sees under the same name, its model of our shape"
            )
        for old in folder.parent.glob("weights-*"):
            if old != folder:
                shutil.rmtree(old)
        self._has = small

    @functools.cached_property
    def _model(self) -> str:
        status, answer = self._call("/v1/models")
        if status != 200 or not isinstance(answer, dict) or not answer.get("data"):
            raise ValueError(f"rollout.server={self.url!r} names no model under /v1/models ({status}): {answer}")
        return answer["data"][0]["id"]

    def _tokens(self, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        tokens, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if tokens is None or logp is None or len(tokens) != len(logp):
            raise ValueError(
                f"rollout.server={self.url!r} gives no token ids with a logprob for each; take a vLLM or an SGLang "
                "whose completions know return_token_ids"
            )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"rollout.server={self.url!r} broke a response off: {choice['finish_reason']!r}")
        return tokens, logp

    def _call(self, route: str, body: dict | None = None) -> tuple[int, Any]:
        """(status, JSON or text); while the server is away it is asked again."""
        data = None if body is None else json.dumps(body).encode()
        away, pause = 0.0, 0.25
        while True:
            request = urllib.request.Request(self.url + route, data, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                    return answer.status, _read(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    said = _read(error.read())
                if error.code not in AWAY:
                    return error.code, said
                why = f"{error.code}: {said}"
            except (OSError, http.client.HTTPException) as error:  # refused, reset, cut off
                why, self._has = str(error), None  # who comes back may have the weights that it began with
            if away >= self._patience:
                raise ValueError(f"rollout.server={self.url!r} has been away for {away:.0f} s ({why}); is it running?")
            time.sleep(pause)
            away, pause = away + pause, min(2 * pause, 10.0)


@functools.cache
def connect(url: str, weights: str = "") -> Server:
    """The server of an address: one for all who ask, so that weights are handed over once."""
    return Server(url, weights)


def rollout(
    server: Server,
    tokenizer,
    eos_ids: Sequence[int],
    prompt_NxP,
    prompt_mask_NxP,
    uid_N,
    key,
    *,
    n: int,
    max_tokens: int,
    sampling: sampler.Sampling,
    stop: Sequence[str] = (),
    slots: int = 0,
    done: Callable[[list[int], sampler.Rollout], None] | None = None,
) -> sampler.Rollout:
    """n responses to each left-padded prompt, prompt by prompt: `rollouts.sample` by way of a server.

    Every response has a seed of its own from (key, prompt, sample), so that a server draws the same again as far as it
    computes the same again. logp is the server's, entropy NaN.

    Args:
      server, tokenizer, eos_ids: who is asked, what makes text of tokens, and what ends a response.
      prompt_NxP, prompt_mask_NxP, uid_N, key: as in `rollouts.sample`.
      n: samples a prompt.
      max_tokens: T.
      sampling: how tokens are drawn.
      stop: texts that end a response, which keeps the token that completes the first of them.
      slots: requests at a time; 0: AT_ONCE.
      done: as in `rollouts.Watch`.

    Raises:
      ValueError: the server refuses, has been away for too long, or gives no token ids with their logp.
    """
    tokens = np.zeros((len(prompt_NxP) * n, max_tokens), np.int32)
    logp, B = np.zeros(tokens.shape, np.float32), len(tokens)
    out = sampler.Rollout(tokens, logp, logp.copy(), tokens.copy(), np.zeros(B, bool))
    keys = sampler.row_keys(key, jnp.asarray(uid_N, jnp.uint32), n)
    seeds = (np.asarray(jax.vmap(jax.random.bits)(keys)) >> 1).tolist()  # engines want them positive
    prompts = [row[seen > 0].tolist() for row, seen in zip(np.asarray(prompt_NxP), np.asarray(prompt_mask_NxP))]
    body = _untouched() | {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "stop": list(stop),
        "stop_token_ids": list(eos_ids),
    }
    stopped = rollouts.stopper(tokenizer, stop)

    def ask(b: int) -> tuple[list[int], list[float], bool]:
        choice = server.complete(prompts[b // n], seed=seeds[b], **body)
        made, nats = server._tokens(choice)
        kept = stopped(b, np.asarray(made)) if stopped else None
        return made[:kept], nats[:kept], kept is not None or choice["finish_reason"] == "stop"

    # no `with`: that would wait for every request in flight where one has failed
    pool = ThreadPoolExecutor(max(1, min(slots or AT_ONCE, B)))
    answered: queue.SimpleQueue = queue.SimpleQueue()
    for b in range(B):
        pool.submit(ask, b).add_done_callback(functools.partial(lambda b, future: answered.put((b, future)), b))
    left = B
    try:
        while left:
            over = [answered.get()]
            while not answered.empty():
                over.append(answered.get())
            for b, future in over:
                made, nats, out.finished[b] = future.result()
                out.tokens[b, : len(made)], out.logp[b, : len(made)] = made, nats
                out.entropy[b, : len(made)], out.mask[b, : len(made)] = np.nan, 1
            left -= len(over)
            if done:
                done([b for b, _ in over], out)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # those not asked yet need no answer
    return out


def drawing(server: Server, cfg, tokenizer, **how) -> Callable[..., sampler.Rollout]:
    """(params, prompt_NxP, prompt_mask_NxP, uid_N, key, done=None) -> Rollout, of a server that gets `params` first.

    Args:
      server, tokenizer: who is asked, what makes text of tokens.
      cfg: the shape of the parameters.
      how: the rest of what `rollout` takes.
    """

    def draw(params, *prompts, done=None) -> sampler.Rollout:
        server.give(cfg, params, tokenizer)
        return rollout(server, tokenizer, cfg.eos_ids, *prompts, done=done, **how)

    return draw


def check_gap(server: str, trainer_logp, server_logp, mask) -> None:
    """ValueError where the server's logp are not those of the weights that it was given.

    Args:
      server: its address.
      trainer_logp, server_logp: f32[B, T], nats, of the same tokens.
      mask: i32[B, T].
    """
    gap = float(np.abs(trainer_logp - server_logp)[np.asarray(mask) > 0].mean()) if np.any(mask) else 0.0
    if not gap <= GAP:
        raise ValueError(
            f"rollout.server={server!r}: its logprobs are {gap:.2f} nats a token from the trainer's, more than {GAP}: "
            "it serves another model or other weights, or changes the logits (a penalty, a quantised cache)"
        )


def _untouched() -> dict[str, Any]:
    """What keeps a server from taking a sampling option out of the model's generation_config.json."""
    return {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def _read(body: bytes) -> Any:
    text = body.decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
