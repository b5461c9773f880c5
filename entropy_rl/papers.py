"""What the papers' runs have in common; a file in configs/ adds the model, the mesh and the number to expect."""

from ml_collections import ConfigDict

from entropy_rl import config


def entropy_mechanism(method: str, source: str, lr: float) -> ConfigDict:
    """The method runs of arXiv 2505.22617: 256 prompts × 8, eight updates of 32 prompts, responses up to 8192."""
    c = _common(source, lr)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 256, 8, 8192
    c.train.steps, c.train.updates_per_rollout = 300, 8
    c.eval.temperature = 0.6
    return _finish(c, method)


def entropy_law(method: str, source: str) -> ConfigDict:
    """The law's runs of arXiv 2505.22617: 512 prompts × 8, batch 256, read as responses: 16 updates of 32 prompts.

    150 rollouts are the paper's 2400 gradient steps. Groups all right or all wrong are replaced.
    """
    c = _common(source, 5e-7)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 512, 8, 8192
    c.rollout.refills = 3
    c.train.steps, c.train.updates_per_rollout = 150, 16
    c.eval.every, c.eval.temperature = 4, 0.6
    return _finish(c, method)


def beyond_80_20(method: str, source: str) -> ConfigDict:
    """arXiv 2506.01939: DAPO with 512 prompts, 16 updates of 32, dynamic sampling, overlong shaping from 16384 on.

    16 samples a prompt are DAPO's; the paper does not say how many it took.
    """
    c = _common(source, 1e-6)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 512, 16, 20_480
    c.rollout.refills = 3
    c.reward.weights.overlong, c.reward.overlong_cache = 1.0, 4096
    c.train.steps, c.train.updates_per_rollout = 100, 16
    c.eval.temperature = 1.0
    return _finish(c, method)


def _common(source: str, lr: float) -> ConfigDict:
    c = config.default()
    c.model.source, c.model.remat = source, "full"
    c.data.task, c.data.template, c.data.held_out_modulus = "dapo-math-17k", "paper_plain", 0
    c.data.max_prompt_len, c.data.bad_rows = 2048, "skip"
    c.reward.workers = 16
    c.optim.lr, c.optim.grad_clip = lr, 1.0
    c.eval.every, c.eval.problems, c.eval.batch = 20, 500, 256
    c.eval.sets = ConfigDict({name: {"task": name} for name in ("aime-2024", "aime-2025", "amc-2023", "math-500")})
    c.warmup.batch = 256  # of no updates
    c.rollout.tensor = 1  # a chip holds the weights once more, in 16 bits; of the largest models a part, see configs/
    c.train.layout = "packed"  # long responses of very different lengths, spread sequence by sequence
    return c


def _finish(c: ConfigDict, method: str) -> ConfigDict:
    config.apply_recipe(c, method)
    # Statistics per micro-batch need micro-batches of whole groups, which have to spread over mesh.data × mesh.fsdp: an
    # `_official` method runs on as many chips as a micro-batch has prompts, or with mesh.tensor for the rest.
    if c.algo.scope == "microbatch":
        c.train.layout = "group"
    return c
