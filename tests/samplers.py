"""A sampler that notes how it is asked, for the tests of everything that samples."""

from typing import Any, NamedTuple

import jax

from entropy_rl.sampling.base import Decoding, Done, Prompts, Rollout, Sampler


class Asked(NamedTuple):
    """The arguments of one call of `Sampler.sample`."""

    params: Any
    prompts: Prompts
    key: jax.Array
    n: int
    decoding: Decoding
    done: Done | None

    @property
    def seed(self) -> int:
        """That of the key, if it was made by `jax.random.key`."""
        return jax.random.key_data(self.key).tolist()[-1]


class Recorder:
    """A `Sampler` that answers as another one does, or with empty responses.

    Attributes:
        asked: its calls, in order.
    """

    measures_entropy = True

    def __init__(self, sampler: Sampler | None = None):
        self.asked: list[Asked] = []
        self.widths: dict[str, int] = {}
        self._sampler = sampler

    def sample(
        self, params: Any, prompts: Prompts, key: jax.Array, *, n: int, decoding: Decoding, done: Done | None = None
    ) -> Rollout:
        self.asked.append(Asked(params, prompts, key, n, decoding, done))
        if self._sampler is None:
            return Rollout.empty(len(prompts.tokens_NxP) * n, decoding.max_tokens)
        return self._sampler.sample(params, prompts, key, n=n, decoding=decoding, done=done)
