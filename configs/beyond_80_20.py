"""Beyond the 80/20 Rule (arXiv 2506.01939) on DAPO-Math-17k: DAPO on all tokens, and on the forking tokens alone.

    python -m entropy_rl.train --config=configs/beyond_80_20.py:qwen3_8b,forking --workdir=gs://BUCKET/forking
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/forking --k=16

After the colon: a model of the table below; after a comma, a method of entropy_rl/config/recipes.py, or none for
"forking". The settings are the paper's. What it does not say is DAPO's, which it follows: 16 samples per prompt, and
answers that score ±1 beside an overlong penalty of 1, that is 0 and 1 beside a half.

qwen3_14b_script (and so for each model) follows the published script instead, which differs from the paper:

    https://github.com/Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR, recipe/rlvr_with_high_entropy_tokens_only

                              paper               script
    weight decay              0                   0.1
    warm-up of the rate       none                10 rollout steps (160 updates; the script moves it once per rollout)
    dual clip                 none                10
    scores, overlong penalty  ±1, 1               0 and 1, 1
    evaluation                top-p 1             top-p 0.7, every 5 steps
    replaced groups           as many as needed   of at most 30 batches of 512; here 15 beside the first
    data                      DAPO-Math-17k       54.4k problems of guru-RL-92k (here DAPO-Math-17k: set data.task)
    prompt                    plain text, above   the tokenizer's chat template (here plain text: set data.chat)
    selected tokens           of the whole batch  the ceiling per micro-batch of a rank: the method forking_official

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
PAPER = {
    "qwen3_8b": Model("Qwen/Qwen3-8B-Base", "v5p:4x4x4", 64, 16, "forking", 1e-6, 512),
    "qwen3_14b": Model("Qwen/Qwen3-14B-Base", "v6e:16x16", 256, 2, "forking", 1e-6, 512, tensor=4),
    # The base model of this size is not public; this is the released one, which has its shape.
    "qwen3_32b": Model("Qwen/Qwen3-32B", "v5p:4x8x8", 256, 2, "forking", 1e-6, 1024, tensor=4),
}
MODELS = papers.with_scripts(PAPER)


def get_config(arg: str = "qwen3_8b") -> ConfigDict:
    name, method = papers.parse(arg, MODELS)
    c = papers.base(MODELS[name])
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 512, 16, 20_480
    c.reward.weights.overlong, c.reward.overlong_cache = 0.5, 4096  # the reward falls from 16384 tokens on
    c.train.steps, c.train.updates_per_rollout = 100, 16
    papers.with_method(c, method)
    if name.endswith("_script"):
        c.optim.weight_decay, c.optim.warmup_updates = 0.1, 10 * c.train.updates_per_rollout
        c.reward.weights.overlong = 1.0
        c.rollout.refills = 15
        c.eval.every, c.eval.samples, c.eval.top_p = 5, 1, 0.7
        if c.algo.objective.name == "ppo_clip":
            c.algo.objective.dual = 10.0
    return c
