"""Beyond the 80/20 Rule (arXiv 2506.01939) on DAPO-Math-17k: DAPO on all tokens, and on the forking tokens alone.

    python -m entropy_rl.train --config=configs/beyond_80_20.py:qwen3_8b,forking --workdir=gs://BUCKET/forking
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/forking --k=16

After the colon: a model of the table below; after a comma, a method of entropy_rl/config/recipes.py, or none for
"forking".

Hardware: the TPU pod in the model's row. How a run fits on it, and how long a step takes, without any TPU:

    python -m entropy_rl.preflight --config=configs/beyond_80_20.py:qwen3_8b --topology=v5p:4x4x4

Expect, by the paper's table (avg@16 at temperature 1; not rerun here), with lengths in tokens:

    qwen3_8b     AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo          33.33   25.42  77.81     89.24    39.77     56.67    53.71    4022
    forking       34.58   26.25  77.19     89.70    40.26     57.43    54.23    5508

    qwen3_14b    AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo          45.21   38.13  89.53     92.23    42.16     61.14    61.40    4752
    forking       50.42   42.92  91.56     93.59    43.20     64.62    64.39    7628

    qwen3_32b    AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo          55.83   45.63  91.88     94.36    45.70     66.16    66.59    5849
    forking       63.54   56.67  94.22     94.88    45.82     69.02    70.69    7227
"""

from ml_collections import ConfigDict

from entropy_rl.config import papers
from entropy_rl.config.papers import Model

# source, topology, fsdp, micro_batches, method, lr, slots
MODELS = {
    "qwen3_8b": Model("Qwen/Qwen3-8B-Base", "v5p:4x4x4", 64, 16, "forking", 1e-6, 512),
    "qwen3_14b": Model("Qwen/Qwen3-14B-Base", "v6e:16x16", 256, 2, "forking", 1e-6, 512, tensor=4),
    # The base model of this size is not public; this is the released one, which has its shape.
    "qwen3_32b": Model("Qwen/Qwen3-32B", "v5p:4x8x8", 256, 2, "forking", 1e-6, 1024, tensor=4),
}


def get_config(arg: str = "qwen3_8b") -> ConfigDict:
    name, method = papers.parse(arg, MODELS)
    c = papers.base(MODELS[name])
    # 16 samples per prompt are DAPO's; the paper does not give its own number.
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 512, 16, 20_480
    c.rollout.refills = 3  # dynamic sampling
    c.reward.weights.overlong, c.reward.overlong_cache = 1.0, 4096  # the reward falls from 16384 tokens on
    c.train.steps, c.train.updates_per_rollout = 100, 16
    c.eval.temperature = 1.0
    return papers.with_method(c, method)
