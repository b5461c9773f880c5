"""The Entropy Mechanism (arXiv 2505.22617) on DAPO-Math-17k: the method runs, and the runs behind the entropy law.

    python -m entropy_rl.train --config=configs/entropy_mechanism.py:qwen2_5_7b,clip_cov --workdir=gs://BUCKET/clip_cov
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/clip_cov --k=32

After the colon: a model of the tables below; after a comma, a method of entropy_rl/config/recipes.py, or none for the
one in the model's row. The method runs follow the paper and its scripts, which agree
(https://github.com/PRIME-RL/Entropy-Mechanism-of-RL, recipe/dapo). Only the scripts tell that groups that are all right
or all wrong are replaced, from at most 10 batches, that there is no overlong penalty and no weight decay, and that
prompts go through the chat template. Neither publishes the system prompt; the one here is Qwen's for mathematics. (The
scripts also set clip_ratio_c=10, which their code does not read.) They differ in two points, each with a name:

    qwen2_5_7b, qwen2_5_32b                 evaluation as in the paper's table: at temperature 0.6
    qwen2_5_7b_script, qwen2_5_32b_script   evaluation in training as in the scripts: greedy, every 4 steps
    clip_cov, kl_cov, kl_cov_32b            the covariance over the whole update, as the paper's formulas have it
    clip_cov_official, kl_cov_official      the covariance over each micro-batch, as the scripts' code takes it

The law's runs have no published script. Their base models without a chat template read plain text.

Hardware: the TPU pod in the model's row. How a run fits on it, and how long a step takes, without any TPU:

    python -m entropy_rl.preflight --config=configs/entropy_mechanism.py:qwen2_5_7b --topology=v5p:4x4x4

Expect of the method runs, by the paper's table (avg@32 at temperature 0.6 on AIME and AMC, greedy elsewhere; not rerun
here):

    qwen2_5_7b     AIME24  AIME25   AMC  MATH-500  OMNI  Olympiad  Minerva  average as printed
    grpo             21.2     9.6  58.7      78.8  27.9      40.7     36.7  38.6
    clip_higher      18.1    11.5  56.6      79.2  29.8      43.3     40.4  38.8
    clip_cov         22.1    15.8  58.2      80.4  30.5      44.1     41.1  40.4
    kl_cov           22.6    12.9  61.4      80.8  29.1      42.6     38.2  40.6

    qwen2_5_32b    AIME24  AIME25   AMC  MATH-500  OMNI  Olympiad  Minerva  average as printed
    grpo             21.8    16.2  69.7      84.2  35.2      43.6     45.5  45.8
    clip_higher      35.6    22.3  69.5      77.2  35.1      42.5     43.0  47.2
    clip_cov         32.3    22.7  67.2      87.0  42.0      57.2     46.0  50.3
    kl_cov_32b       36.8    30.8  74.5      84.6  39.1      49.0     46.3  52.2

The entropy of qwen2_5_7b starts near 0.65; GRPO's ends near 0.02, KL-Cov's near 0.22, clip-higher's near 0.33 (read
off the curves).

Expect of the law's runs, by the paper (not rerun here): reward R = −a·exp(H) + b with an RMSE of 0.9% when fitted on
the first 36 steps, and 73% of the entropy gone in the first 200 of 2400 gradient steps. The paper gives no scores for
these models.
"""

from ml_collections import ConfigDict

from entropy_rl.config import papers
from entropy_rl.config.papers import Model

# source, topology, fsdp, micro_batches, method, lr, slots
METHOD_RUNS = {
    "qwen2_5_7b": Model("Qwen/Qwen2.5-7B", "v5p:4x4x4", 64, 4, "clip_cov", 5e-7, 0, remat="dots"),
    "qwen2_5_32b": Model("Qwen/Qwen2.5-32B", "v5p:4x4x4", 64, 4, "kl_cov_32b", 1e-6, 512, tensor=4),
}
LAW_RUNS = {
    "qwen2_5_0_5b": Model("Qwen/Qwen2.5-0.5B", "v5e:4x4", 16, 4, "grpo", 5e-7, 512),
    "qwen2_5_1_5b": Model("Qwen/Qwen2.5-1.5B", "v5e:4x8", 32, 4, "grpo", 5e-7, 512),
    "qwen2_5_3b": Model("Qwen/Qwen2.5-3B", "v5e:8x8", 64, 4, "grpo", 5e-7, 512),
    "llama3_1_8b": Model("meta-llama/Llama-3.1-8B", "v5p:4x4x4", 64, 4, "grpo", 5e-7, 1024),
    "mistral_7b": Model("mistralai/Mistral-7B-v0.3", "v5p:4x4x4", 64, 4, "grpo", 5e-7, 1024),
}
MODELS = papers.with_scripts(METHOD_RUNS) | LAW_RUNS

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


def get_config(arg: str = "qwen2_5_7b") -> ConfigDict:
    name, method = papers.parse(arg, MODELS)
    c = papers.base(MODELS[name])
    c.rollout.samples, c.rollout.max_tokens = 8, 8192
    if c.model.source.startswith("Qwen/"):  # the base models of the other families have no chat template
        c.data.chat, c.data.template, c.data.system_prompt = True, "{question}", SYSTEM_PROMPT
    if name in LAW_RUNS:
        # The law's batch of 256, read as responses: 16 updates of 32 prompts. So the paper's 2400 gradient steps are
        # 150 rollouts.
        c.rollout.prompts, c.train.updates_per_rollout, c.train.steps = 512, 16, 150
        c.eval.every = 4
    else:  # eight updates of 32 prompts per rollout
        c.rollout.prompts, c.train.updates_per_rollout, c.train.steps = 256, 8, 300
        if name.endswith("_script"):
            c.eval.every = 4
        else:
            c.eval.samples, c.eval.temperature = 4, 0.6  # few, in training; the command above draws the paper's 32
    return papers.with_method(c, method)
