r"""Qwen2.5-32B on DAPO-Math-17k with the settings of the method runs, The Entropy Mechanism (arXiv 2505.22617).

    python -m entropy_rl.train --config=configs/qwen2_5_32b.py:kl_cov_32b --workdir=gs://BUCKET/qwen2_5_32b-kl_cov_32b
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen2_5_32b-kl_cov_32b --k=32

Hardware: TPU v5p:4x4x4 (64 chips);
`python -m entropy_rl.preflight --config=configs/qwen2_5_32b.py --topology=v5p:4x4x4` says how it fits.
Expect, by the paper's table (avg@32 at temperature 0.6 on AIME and AMC, greedy elsewhere; not rerun here):

                 AIME24  AIME25   AMC  MATH-500  OMNI  Olympiad  Minerva  average as printed
    grpo           21.8    16.2  69.7      84.2  35.2      43.6     45.5  45.8
    clip_higher    35.6    22.3  69.5      77.2  35.1      42.5     43.0  47.2
    clip_cov       32.3    22.7  67.2      87.0  42.0      57.2     46.0  50.3
    kl_cov_32b     36.8    30.8  74.5      84.6  39.1      49.0     46.3  52.2
"""

from entropy_rl import papers


def get_config(method: str = "kl_cov_32b"):
    c = papers.entropy_mechanism(method, "Qwen/Qwen2.5-32B", lr=1e-6)
    c.mesh.fsdp, c.train.micro_batches, c.rollout.slots = 64, 4, 512
    c.rollout.tensor = 4
    return c
