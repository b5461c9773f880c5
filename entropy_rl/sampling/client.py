"""The HTTP client of a server that users already run: OpenAI's completions, as vLLM or SGLang serve them.

Text would not do for the responses: tokenized again, it does not always give the tokens that were drawn. So token ids
are sent and token ids come back, each with its log-probability.
"""

import functools
import http.client
import json
import os
import pathlib
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from entropy_rl.model import lora
from entropy_rl.model.hf import save_folder
from entropy_rl.model.transformer import ModelConfig, Params
from entropy_rl.runtime.files import expand

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PATIENCE = 600.0  # seconds that a server may be away
ANSWER = 7200.0  # seconds to wait for an answer, a long response's time in the queue included
AWAY = (429, 502, 503, 504)  # statuses of a server that will be back
# The routes by which a server reads a folder: SGLang's own, and vLLM's, which exists in development mode.
TAKE: dict[str, Callable[[str], dict[str, Any]]] = {
    "/update_weights_from_disk": lambda folder: {"model_path": folder},
    "/collective_rpc": lambda folder: {"method": "reload_weights", "kwargs": {"weights_path": folder}},
}
FORGET = "/reset_prefix_cache"  # without it vLLM keeps keys and values of the old weights; SGLang drops them


class Server:
    """One server, and the parameters that it was given last.

    Attributes:
        url: its address, without the /v1.
        weights: a folder that this machine and the server both see; "": the server keeps its own weights.

    Raises:
        ValueError: The address is not an http(s) address.
    """

    def __init__(self, url: str, weights: str = "", patience: float = PATIENCE):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"rollout.server={url!r} must be an address like http://localhost:8000")
        self.url, self.weights, self._patience = url.rstrip("/").removesuffix("/v1"), weights, patience
        key = os.environ.get("ENTROPY_RL_SERVER_KEY")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._has: Any = None

    def complete(self, prompt: Sequence[int], **body: Any) -> dict[str, Any]:
        """The one choice of a completion that begins after these token ids; `body` has the request's other fields."""
        request = {"model": self._model, "prompt": list(prompt), "logprobs": 0, "return_token_ids": True} | body
        status, answer = self._call("/v1/completions", request)
        if status != 200:
            raise ValueError(f"rollout.server={self.url!r} refuses a request ({status}): {answer}")
        (choice,) = answer["choices"]
        return choice

    def check(self, prompt: Sequence[int], temperature: float) -> None:
        """Asks for one token, so that what would fail late is known early.

        The logp of a token must be that of the distribution that it was drawn from. By default vLLM returns it from
        before the temperature. Temperature scales the differences between log-probabilities, so the differences
        between the likeliest tokens show which kind came back.

        Raises:
            ValueError: No server, no token ids with their logp, or logp from before the temperature.
        """

        def ask(temperature: float) -> dict[str, Any]:
            return self.complete(prompt, max_tokens=1, temperature=temperature, logprobs=5, **untouched())

        def spread(choice: dict[str, Any]) -> float:
            return float(np.ptp(np.sort(list(choice["logprobs"]["top_logprobs"][0].values()))[-5:]))

        choice = ask(temperature)
        self.tokens(choice)
        if not choice["logprobs"].get("top_logprobs"):
            raise ValueError(f"rollout.server={self.url!r} returns no top_logprobs although five were asked for")
        got, at_one = spread(choice), spread(ask(1.0))
        if temperature != 1 and abs(got - at_one) < abs(got - at_one / temperature):
            raise ValueError(
                f"rollout.server={self.url!r} returns logprobs from before rollout.temperature={temperature}, with "
                "which the importance correction would be wrong; start vLLM with --logprobs-mode processed_logprobs"
            )

    def give(
        self, cfg: ModelConfig, params: Params, tokenizer: "PreTrainedTokenizerBase", dtype: np.dtype | None = None
    ) -> None:
        """Hands the parameters over as a Hugging Face folder, unless the server has them already.

        Each hand-over uses a folder with a new name, so that no file system shows the server an old file; the folder
        before it is removed.

        Args:
            cfg: the parameters' shape.
            params: the parameters.
            tokenizer: the model's.
            dtype: that of the folder's tensors; None: the parameters' own.

        Raises:
            ValueError: The server has no route to take weights, or could not take them.
        """
        # represents all: an update makes new arrays of what is trained
        small = min(jax.tree.leaves(lora.split(params)[0]), key=lambda x: x.size)
        if small is self._has:
            return
        folder = pathlib.Path(self.weights).absolute() / f"weights-{time.time_ns()}"
        if dtype is not None:
            cfg, params = lora.plain(cfg), lora.merged(cfg, params, dtype)
        save_folder(folder, cfg, params, tokenizer)
        for route, body in TAKE.items():
            status, answer = self._call(route, body(str(folder)))
            if status not in (404, 405):
                break
        else:
            raise ValueError(
                f"rollout.server={self.url!r} has none of {', '.join(TAKE)}, so it cannot take weights; start "
                "vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, or take SGLang"
            )
        if status == 200 and route == "/collective_rpc":
            status, answer = self._call(FORGET, {})
        if status != 200 or (isinstance(answer, dict) and answer.get("success") is False):
            raise ValueError(
                f"rollout.server={self.url!r} did not take {folder} ({status}): {answer}\nrollout.server_weights="
                f"{self.weights!r} must be a folder that the server sees under the same name, and its model must have "
                "our shape"
            )
        for old in folder.parent.glob("weights-*"):
            if old != folder:
                shutil.rmtree(old)
        self._has = small

    @functools.cached_property
    def _model(self) -> str:
        status, answer = self._call("/v1/models")
        if status != 200 or not isinstance(answer, dict) or not answer.get("data"):
            raise ValueError(f"rollout.server={self.url!r} lists no model under /v1/models ({status}): {answer}")
        return answer["data"][0]["id"]

    def tokens(self, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        """(token ids, their logp in nats) of a completion.

        Raises:
            ValueError: One of the two is missing, or the response was broken off.
        """
        tokens, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if tokens is None or logp is None or len(tokens) != len(logp):
            raise ValueError(
                f"rollout.server={self.url!r} returns no token ids with a logprob for each; use a vLLM or an SGLang "
                "whose completions support return_token_ids"
            )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"rollout.server={self.url!r} broke a response off: {choice['finish_reason']!r}")
        return tokens, logp

    def _call(self, route: str, body: dict | None = None) -> tuple[int, Any]:
        """(status, JSON or text); asks again while the server is away."""
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
                why, self._has = str(error), None  # a restarted server may have its first weights again
            if away >= self._patience:
                raise ValueError(f"rollout.server={self.url!r} has been away for {away:.0f} s ({why}); is it running?")
            if not away:
                logging.warning("%s does not answer (%s); it is asked for %.0f s more", self.url, why, self._patience)
            time.sleep(pause)
            away, pause = away + pause, min(2 * pause, 10.0)


@functools.cache
def connect(url: str, weights: str = "") -> Server:
    """The one server of an address, whoever asks, so that weights are handed over once."""
    return Server(url, expand(weights))


def untouched() -> dict[str, Any]:
    """Fields that keep a server from taking sampling options from the model's generation_config.json."""
    return {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def _read(body: bytes) -> Any:
    text = body.decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
