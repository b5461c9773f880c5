r"""Qwen2.5-3B on DAPO-Math-17k with the settings of the law's runs, The Entropy Mechanism (arXiv 2505.22617).

    python -m entropy_rl.train --config=configs/qwen2_5_3b.py:grpo --workdir=gs://BUCKET/qwen2_5_3b-grpo
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen2_5_3b-grpo --k=32

Hardware: TPU v5e:8x8 (64 chips);
`python -m entropy_rl.preflight --config=configs/qwen2_5_3b.py --topology=v5e:8x8` says how it fits.
Expect, by the paper (not rerun here): reward R = −a·exp(H) + b with an RMSE of 0.9% when fitted on the first 36 steps,
and 73% of the entropy gone in the first 200 of 2400 gradient steps. The paper gives no scores for this model.
"""

from entropy_rl import papers


def get_config(method: str = "grpo"):
    c = papers.entropy_law(method, "Qwen/Qwen2.5-3B")
    c.mesh.fsdp, c.train.micro_batches, c.rollout.slots = 64, 4, 512
    return c
