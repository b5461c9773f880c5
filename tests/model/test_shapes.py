"""The papers' shapes have the number of parameters of the published weights."""

import math

import jax
import pytest

from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.transformer import abstract_params

# the sizes of the safetensors files on the hub, in parameters, without a tied head that some of them store twice
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-1b-it": 999_885_952,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_number_of_parameters_is_the_published_one(name):
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(SHAPES[name]))) == PUBLISHED[name]
