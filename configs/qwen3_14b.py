r"""Qwen3-14B-Base on DAPO-Math-17k, Beyond the 80/20 Rule (arXiv 2506.01939): DAPO, and forking tokens alone.

    python -m entropy_rl.train --config=configs/qwen3_14b.py:forking --workdir=gs://BUCKET/qwen3_14b-forking
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen3_14b-forking --k=16

Hardware: TPU v6e:16x16 (256 chips);
`python -m entropy_rl.preflight --config=configs/qwen3_14b.py --topology=v6e:16x16` says how it fits.
Expect, by the paper's table (avg@16 at temperature 1; not rerun here), with lengths in tokens:

              AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo       45.21   38.13  89.53     92.23    42.16     61.14    61.40    4752
    forking    50.42   42.92  91.56     93.59    43.20     64.62    64.39    7628
"""

from entropy_rl import papers


def get_config(method: str = "forking"):
    c = papers.beyond_80_20(method, "Qwen/Qwen3-14B-Base")
    c.mesh.fsdp, c.train.micro_batches, c.rollout.slots = 256, 2, 512
    c.rollout.tensor = 4
    return c
