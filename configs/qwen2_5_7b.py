r"""Qwen2.5-7B on DAPO-Math-17k with the settings of the method runs, The Entropy Mechanism (arXiv 2505.22617).

    python -m entropy_rl.train --config=configs/qwen2_5_7b.py:clip_cov --workdir=gs://BUCKET/qwen2_5_7b-clip_cov
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen2_5_7b-clip_cov --k=32

Hardware: TPU v5p:4x4x4 (64 chips);
`python -m entropy_rl.preflight --config=configs/qwen2_5_7b.py --topology=v5p:4x4x4` says how it fits.
Expect, by the paper's table (avg@32 at temperature 0.6 on AIME and AMC, greedy elsewhere; not rerun here):

                 AIME24  AIME25   AMC  MATH-500  OMNI  Olympiad  Minerva  average as printed
    grpo           21.2     9.6  58.7      78.8  27.9      40.7     36.7  38.6
    clip_higher    18.1    11.5  56.6      79.2  29.8      43.3     40.4  38.8
    clip_cov       22.1    15.8  58.2      80.4  30.5      44.1     41.1  40.4
    kl_cov         22.6    12.9  61.4      80.8  29.1      42.6     38.2  40.6

Entropy starts near 0.65; GRPO's ends near 0.02, KL-Cov's near 0.22, clip-higher's near 0.33 (read off the curves).
"""

from entropy_rl import papers


def get_config(method: str = "clip_cov"):
    c = papers.entropy_mechanism(method, "Qwen/Qwen2.5-7B", lr=5e-7)
    c.mesh.fsdp, c.train.micro_batches, c.model.remat = 64, 4, "dots"
    return c
