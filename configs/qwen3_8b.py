r"""Qwen3-8B-Base on DAPO-Math-17k, Beyond the 80/20 Rule (arXiv 2506.01939): DAPO, and forking tokens alone.

    python -m entropy_rl.train --config=configs/qwen3_8b.py:forking --workdir=gs://BUCKET/qwen3_8b-forking
    python -m entropy_rl.evaluate --workdir=gs://BUCKET/qwen3_8b-forking --k=16

Hardware: TPU v5p:4x4x4 (64 chips);
`python -m entropy_rl.preflight --config=configs/qwen3_8b.py --topology=v5p:4x4x4` says how it fits.
Expect, by the paper's table (avg@16 at temperature 1; not rerun here), with lengths in tokens:

              AIME24  AIME25    AMC  MATH-500  Minerva  Olympiad  average  length
    dapo       33.33   25.42  77.81     89.24    39.77     56.67    53.71    4022
    forking    34.58   26.25  77.19     89.70    40.26     57.43    54.23    5508
"""

from entropy_rl import papers


def get_config(method: str = "forking"):
    c = papers.beyond_80_20(method, "Qwen/Qwen3-8B-Base")
    c.mesh.fsdp, c.train.micro_batches, c.rollout.slots = 64, 16, 512
    return c
