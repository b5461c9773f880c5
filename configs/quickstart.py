"""The main job in a few minutes on two CPU cores; nothing is downloaded.

A model of 0.7M parameters is taught worked sums of three digits. Two in three of them read every minus as a plus, and
one step in twenty is wrong: the model learns both readings, and reinforcement learning with verifiable rewards has to
find out which one is right.

    python -m entropy_rl.train --config=configs/quickstart.py:grpo --workdir=runs/quickstart

After the colon: any method of entropy_rl/config/recipes.py.
"""

from ml_collections import ConfigDict

from entropy_rl import config


def get_config(method: str = "grpo") -> ConfigDict:
    c = config.default()
    c.model.source = "tiny"
    c.data.settings.update(min_terms=3, max_terms=3, min_digits=1, max_digits=1)
    c.model.tiny.d_ff = 320
    c.data.max_prompt_len = 11
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 32, 8, 28
    c.warmup.updates, c.warmup.batch, c.warmup.lr, c.warmup.error_rate = 600, 64, 2e-3, 0.05
    c.warmup.misread_rate = 0.65
    c.optim.lr = 1e-4
    c.train.steps, c.train.updates_per_rollout = 80, 2
    c.eval.every, c.eval.problems, c.eval.batch = 20, 256, 256
    c.checkpoint.every = 20
    return config.apply_recipe(c, method)
