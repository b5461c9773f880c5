"""The checks of a configuration, made before any work starts: each error names the key, its value and a legal one."""

from typing import Any

from ml_collections import ConfigDict

from entropy_rl import token_transforms
from entropy_rl.config.recipes import transforms_of
from entropy_rl.objective.surrogates import AGGREGATIONS
from entropy_rl.rewards.verify import OWN_KIND

_ABOVE_ZERO = (
    "rollout.prompts",
    "rollout.samples",
    "rollout.max_tokens",
    "data.max_prompt_len",
    "eval.temperature",
    "train.updates_per_rollout",
    "train.micro_batches",
    "eval.batch",
    "eval.problems",
    "warmup.batch",
    "warmup.micro_batches",
    "optim.grad_clip",
    "checkpoint.every",
    "checkpoint.warmup_every",
    "checkpoint.keep",
    "reward.workers",
)
_ZERO_OR_ABOVE = (
    "eval.every",
    "measure.every",
    "warmup.updates",
    "warmup.lr",
    "optim.lr",
    "optim.warmup_updates",
    "optim.weight_decay",
    "algo.is_cap",
    "log.samples",
    "eval.samples",
    "rollout.refills",
    "reward.overlong_cache",
    "rollout.slots",
    "rollout.tensor",
)
_ONE_OF = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "optim.name": ("adamw", "sgd"),
    "train.layout": ("auto", "group", "packed"),
    "warmup.layout": ("auto", "group", "packed"),
}


def check(c: ConfigDict) -> None:
    """Refuses whatever can be known to be wrong before work starts.

    Args:
        c: The whole configuration.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    for key in _ABOVE_ZERO:
        if not _at(c, key) > 0:
            raise ValueError(f"{key}={_at(c, key)} must be above 0")
    _check_rollout(c.rollout, c.algo.is_cap)
    _check_train(c.train, c.rollout.prompts)
    if c.warmup.batch % c.warmup.micro_batches:
        raise ValueError(f"warmup.micro_batches={c.warmup.micro_batches} must divide warmup.batch={c.warmup.batch}")
    for key, legal in _ONE_OF.items():
        if _at(c, key) not in legal:
            raise ValueError(f"{key}={_at(c, key)!r} must be one of {', '.join(legal)}")
    for key in _ZERO_OR_ABOVE:
        if _at(c, key) < 0:
            raise ValueError(f"{key}={_at(c, key)} must be 0 or above")
    if c.optim.name == "sgd" and c.optim.weight_decay:
        raise ValueError(f"optim.weight_decay={c.optim.weight_decay} is not read by sgd; set it to 0, or use adamw")
    check_reward(c.reward, c.rollout.max_tokens)
    _check_algo(c.algo, c.train)


def _at(c: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        c = c[part]
    return c


def _check_rollout(rollout: ConfigDict, is_cap: float) -> None:
    if rollout.temperature <= 0:
        raise ValueError(f"rollout.temperature={rollout.temperature} must be above 0: greedy samples teach nothing")
    if rollout.top_p != 1 or rollout.top_k != 0:
        raise ValueError(
            f"rollout.top_p={rollout.top_p}, rollout.top_k={rollout.top_k}: a truncated sampler draws "
            "from another distribution than the one trained, and its ratios are wrong; set them to 1.0 and 0"
        )
    if bool(rollout.server) != bool(rollout.server_weights):
        raise ValueError(
            f"rollout.server={rollout.server!r} with rollout.server_weights={rollout.server_weights!r}: a server "
            "that makes the responses receives the policy through a folder; set both or neither"
        )
    if rollout.server and not is_cap:
        raise ValueError(
            f"algo.is_cap={is_cap} with rollout.server={rollout.server!r}: another engine draws from a slightly "
            "different distribution; set it to about 2.0, the largest weight of the importance correction"
        )


def _check_train(train: ConfigDict, prompts: int) -> None:
    if train.steps < 0:
        raise ValueError(f"train.steps={train.steps} must be 0 (only the warm-up and an evaluation) or more")
    per_update, rest = divmod(prompts, train.updates_per_rollout)
    if rest:
        raise ValueError(
            f"rollout.prompts={prompts} must be a multiple of "
            f"train.updates_per_rollout={train.updates_per_rollout}: an update is made of whole groups"
        )
    if per_update % train.micro_batches:
        raise ValueError(
            f"train.micro_batches={train.micro_batches} must divide the {per_update} prompts of an update "
            "(rollout.prompts / train.updates_per_rollout)"
        )


def _check_algo(algo: ConfigDict, train: ConfigDict) -> None:
    if algo.aggregation not in AGGREGATIONS:
        raise ValueError(f"algo.aggregation={algo.aggregation!r} must be one of {', '.join(AGGREGATIONS)}")
    if algo.scope == "microbatch" and train.layout == "packed":
        raise ValueError("train.layout='packed' has no micro-batches of whole groups for algo.scope='microbatch'")
    if algo.scope == "microbatch" and train.micro_batches == 1:
        raise ValueError(
            "algo.scope='microbatch' with train.micro_batches=1 is the same as 'global'; set "
            "train.micro_batches to 2 or more"
        )
    if missing := [name for name in algo.chain if name not in algo.transforms]:
        raise ValueError(f"algo.chain names {missing}, which algo.transforms does not describe")
    if unused := [name for name in algo.transforms if name not in algo.chain]:
        raise ValueError(f"algo.transforms describes {unused}, which algo.chain does not use")
    token_transforms.check_updates_per_rollout(transforms_of(algo), train.updates_per_rollout)


def check_reward(reward: ConfigDict, max_tokens: int) -> None:
    """Refuses parts of the reward that do not exist, are not read, or contradict one another.

    Args:
        reward: The config section `reward`.
        max_tokens: `rollout.max_tokens`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    weights, own = reward.weights, reward.own.to_dict()
    taken = (*weights, "mean", "std", "unscored")
    for name, part in own.items():
        if name in taken or "/" in name:
            raise ValueError(f"reward.own.{name}: choose a name without '/' that is none of {', '.join(taken)}")
        if sorted(part) != ["function", "weight"] or not OWN_KIND.fullmatch(str(part["function"])):
            raise ValueError(f'reward.own.{name}={part} must be {{function: "module:function", weight: number}}')
    if not any(weights.values()) and not any(part["weight"] for part in own.values()):
        raise ValueError("reward.weights: every part has weight 0, so nothing would be learnt")
    if bool(weights.overlong) != bool(reward.overlong_cache):
        raise ValueError(
            f"reward.weights.overlong={weights.overlong} with reward.overlong_cache={reward.overlong_cache}: soft "
            "overlong punishment needs both"
        )
    if reward.overlong_cache > max_tokens:
        raise ValueError(
            f"reward.overlong_cache={reward.overlong_cache} must be at most rollout.max_tokens={max_tokens}"
        )


def check_mesh(c: ConfigDict, shards: int, sampling: int) -> None:
    """Refuses prompts of a micro-batch, an evaluation or the warm-up that do not spread evenly over the devices.

    Args:
        c: The whole configuration.
        shards: The number of row shards in training, mesh.data × mesh.fsdp.
        sampling: The number of row shards in a rollout; it differs from `shards` if `rollout.tensor` is set.

    Raises:
        ValueError: Names the number that is not a multiple.
    """
    if c.train.layout == "packed":  # rows of sequences, not of groups
        update_key = "rollout.prompts × rollout.samples / train.updates_per_rollout"
        update = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
    else:
        update_key = "rollout.prompts / train.updates_per_rollout / train.micro_batches"
        update = c.rollout.prompts // c.train.updates_per_rollout // c.train.micro_batches
    for key, size in (
        (update_key, update),
        ("rollout.prompts", c.rollout.prompts),
        ("eval.batch", c.eval.batch),
        ("warmup.batch / warmup.micro_batches", c.warmup.batch // c.warmup.micro_batches),
    ):
        if size % shards:
            raise ValueError(
                f"{key} = {size} must be a multiple of mesh.data × mesh.fsdp = {shards}; change it, or set mesh.data "
                "to use fewer devices"
            )
        if key in ("rollout.prompts", "eval.batch") and size % sampling:
            raise ValueError(
                f"{key} = {size} must be a multiple of the {sampling} groups of rollout.tensor={c.rollout.tensor} "
                "devices that sample"
            )
