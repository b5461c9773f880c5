"""A small policy, and an encoder of short prompts."""

import dataclasses

import jax
import pytest
from tiny_models import FAMILIES, random_params, tiny_tokenizer

from entropy_rl import config
from entropy_rl.data import PromptEncoder
from entropy_rl.policy import Policy


@pytest.fixture(scope="module")
def policy():
    cfg = dataclasses.replace(FAMILIES["llama"], eos_ids=(2,))
    return Policy(cfg, jax.device_put(random_params(cfg)), tiny_tokenizer())


@pytest.fixture(scope="module")
def encoder(policy):
    c = config.default()
    c.data.max_prompt_len = 12
    return PromptEncoder(c.data, policy.tokenizer)
