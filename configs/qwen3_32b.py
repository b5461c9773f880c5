r"""Qwen3-32B on DAPO-Math-17k, Beyond the 80/20 Rule (arXiv 2506.01939): DAPO, and forking tokens alone.

    python -m entropy_rl.train --config=configs/qwen3_32b.py:forking --workdir=gs://BUCKET/qwen3_32b-forking
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen3_32b-forking --k=16

Hardware: TPU v5p:4x8x8 (256 chips);
`python -m entropy_rl.preflight --config=configs/qwen3_32b.py --topology=v5p:4x8x8` says how it fits.
The base model of this size is not public; the name below is of the released one, which has its shape.
Expect, by the paper's table (avg@16 at temperature 1; not rerun here), with lengths in tokens:

              AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo       55.83   45.63  91.88     94.36    45.70     66.16    66.59    5849
    forking    63.54   56.67  94.22     94.88    45.82     69.02    70.69    7227
"""

from entropy_rl import papers


def get_config(method: str = "forking"):
    c = papers.beyond_80_20(method, "Qwen/Qwen3-32B")
    c.mesh.fsdp, c.train.micro_batches, c.rollout.slots = 256, 2, 1024
    c.rollout.tensor = 4
    return c
