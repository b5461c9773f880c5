"""What every sampler takes and gives: prompts, decoding options, responses, and the protocol itself.

Shapes: N prompts, P prompt positions, n samples per prompt, B = N·n responses, T response positions. Logs are natural.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from entropy_rl.model.transformer import Params

Done = Callable[[list[int], "Rollout"], None]  # (numbers of the responses that have just ended, the rollout so far)


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        tokens_NxP: i32, padded on the left, so that every prompt ends at the last position.
        mask_NxP: i32, 1 on the prompt's tokens.
        uid_N: u32, a hash of each problem: a prompt's random draws depend on it and not on its row.
    """

    tokens_NxP: np.ndarray
    mask_NxP: np.ndarray
    uid_N: np.ndarray


class Forks(NamedTuple):
    """The positions that have a temperature of their own: those where the distribution is wide.

    This is how arXiv 2506.01939 (section 3) decodes with two temperatures. Its threshold, 0.672 nats, is the 80th
    percentile of entropies at temperature 1, and so entropies at temperature 1 are compared with it here, whatever the
    two temperatures are.

    Attributes:
        threshold: nats; a position is a fork if its entropy at temperature 1 is above it.
        temperature: of the forks, above 0.
    """

    threshold: float
    temperature: float


class Sampling(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: 0 is greedy; its logp and entropy are those at temperature 1.
        top_p: the smallest set of tokens that holds this probability is drawn from; 1: all.
        top_k: this many of the likeliest tokens are drawn from; 0: all.
        forks: positions with another temperature; `temperature` is then that of all others. None: there are none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    forks: Forks | None = None

    def check(self) -> "Sampling":
        """Returns itself.

        Raises:
            ValueError: A value that makes no distribution; names the key of the configuration, or the flag.
        """
        if self.forks is not None:
            if not self.forks.threshold >= 0:
                raise ValueError(f"--fork_threshold={self.forks.threshold} must be 0 nats or above")
            for flag, value in (("fork", self.forks.temperature), ("other", self.temperature)):
                if not 0 < value < math.inf:
                    raise ValueError(f"--{flag}_temperature={value} must be a finite number above 0")
        if self.temperature < 0:
            raise ValueError(f"rollout.temperature={self.temperature} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout.top_p={self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"rollout.top_k={self.top_k} must be 0 (off) or above")
        return self


GREEDY = Sampling(temperature=0.0)


class Decoding(NamedTuple):
    """How a response is made.

    Attributes:
        sampling: how each token is drawn.
        max_tokens: T, the length at which a response is cut.
        eos_ids: the tokens that end a response.
        stop: the texts that end a response, which keeps the token that completes the first of them.
        ids: only tokens below this one are drawn, see `draw.draw`; 0: all.
    """

    sampling: Sampling
    max_tokens: int
    eos_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    ids: int = 0


class Rollout(NamedTuple):
    """Sampled responses, prompt by prompt; masked positions are exactly 0.

    Attributes:
        tokens: i32[B, T], the end-of-sequence token included.
        logp: f32[B, T], log π(token) of the untruncated distribution at the temperature that it was drawn at, nats.
        entropy: f32[B, T], the entropy of that distribution, nats; NaN if the sampler cannot measure it.
        mask: i32[B, T], 1 on response tokens.
        finished: bool[B], the response ended before it was cut at T.
    """

    tokens: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray
    mask: np.ndarray
    finished: np.ndarray

    @classmethod
    def empty(cls, B: int, T: int) -> "Rollout":
        """B responses without a token, on the host, to be written to."""
        tokens, values = np.zeros((B, T), np.int32), np.zeros((B, T), np.float32)
        return cls(tokens, values, values.copy(), tokens.copy(), np.zeros(B, bool))


class Sampler(Protocol):
    """Makes responses: `LocalSampler` on this machine's devices, `ServerSampler` by asking another engine.

    Attributes:
        measures_entropy: False: the rollout's entropy is NaN and its logp is another engine's, so the trainer has to
            score the responses itself.
        widths: how many responses are made at a time, by shape and device, where that was chosen by the memory that was
            free. A run keeps it in its checkpoints: on an accelerator, another width rounds sums otherwise.
    """

    @property
    def measures_entropy(self) -> bool:
        """See above."""
        ...

    @property
    def widths(self) -> dict[str, int]:
        """See above."""
        ...

    def sample(
        self,
        params: "Params",
        prompts: Prompts,
        key: jax.Array,
        *,
        n: int,
        decoding: Decoding,
        done: Done | None = None,
    ) -> Rollout:
        """Makes n responses to each prompt.

        Args:
            params: the policy's parameters.
            prompts: the same on every process.
            key: the step's key; a response's draws depend on (key, prompt, sample, position) alone.
            n: samples per prompt.
            decoding: how tokens are drawn and what ends a response.
            done: called with the responses that have just ended, while the others continue.

        Returns:
            The responses, on the host, the same on every process.
        """
        ...


class Response(NamedTuple):
    """One sampled response.

    Attributes:
        text: decoded, without special tokens.
        tokens: i32[t], the end-of-sequence token included.
        logp: f32[t], the log-probability of each token at the sampling temperature, nats.
        entropy: f32[t], the entropy of the distribution that each token was drawn from, nats.
        finished: it ended before it was cut at max_tokens.
    """

    text: str
    tokens: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray
    finished: bool


def responses(rollout: Rollout, tokenizer: "PreTrainedTokenizerBase") -> list[Response]:
    """A rollout (on the host) as a list of B responses."""
    found = []
    for b, length in enumerate(np.asarray(rollout.mask).sum(axis=1)):
        tokens = np.asarray(rollout.tokens[b, :length])
        found.append(
            Response(
                str(tokenizer.decode(tokens, skip_special_tokens=True)),
                tokens,
                np.asarray(rollout.logp[b, :length]),
                np.asarray(rollout.entropy[b, :length]),
                bool(rollout.finished[b]),
            )
        )
    return found


Stop = Callable[[np.ndarray, int], int | None]  # see `stopper`
_LOOK = 16  # tokens whose text is looked at together
_SLACK = 8  # characters; those at the start of a part of a response may differ from the same in the whole


def stopper(tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> Stop | None:
    """A function that finds the first stop text in a response's tokens.

    Its time depends on the tokens that have not been looked at, not on the whole response: text is made of these and of
    as many tokens before them as a stop text may have begun in. What is found there is looked up in the whole.

    Returns:
        None without `stops`. Otherwise f(tokens, seen) -> how many of them to keep, those up to the one that completes
        the first stop text; None: they contain none. `seen`: f has looked at that many of them before.
    """
    if not stops:
        return None
    reach = max(map(len, stops)) + _SLACK

    special = [s for s in stops if any(token in s for token in tokenizer.all_special_tokens)]

    def text(tokens: np.ndarray, skip: bool = True) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=skip))

    def has_stop(tokens: np.ndarray) -> bool:
        made = text(tokens)
        return any(s in made for s in stops) or bool(special) and any(s in text(tokens, skip=False) for s in special)

    def begin(tokens: np.ndarray, end: int) -> int:
        """Where the last `reach` characters of tokens[:end] begin, or a little before."""
        count = reach
        while count < end and len(text(tokens[end - count : end])) < reach:
            count *= 2
        return max(end - count, 0)

    def stop(tokens: np.ndarray, seen: int = 0) -> int | None:
        for start in range(seen, len(tokens), _LOOK):
            end, first = min(start + _LOOK, len(tokens)), begin(tokens, start)
            if has_stop(tokens[first:end]):
                for i in range(start + 1, end + 1):
                    if has_stop(tokens[first:i]) and has_stop(tokens[:i]):
                        return i
        return None

    return stop
