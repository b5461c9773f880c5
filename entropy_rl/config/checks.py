"""The checks of a configuration, made before any work starts: each error names the key, its value and a legal one."""

from typing import Any

from ml_collections import ConfigDict

from entropy_rl import token_transforms
from entropy_rl.config.fields import check_fields
from entropy_rl.config.recipes import named, transforms_of
from entropy_rl.model.matrices import WEIGHTS
from entropy_rl.objective import advantages, surrogates
from entropy_rl.rewards.controls import PART
from entropy_rl.rules import TEXTS, number, of_options, one_of, whole
from entropy_rl.rules import check as check_value
from entropy_rl.token_transforms.schedule import SHAPES

# The fields of `algo` that are no part with a name and options.
ALGO = {
    "aggregation": one_of(*surrogates.AGGREGATIONS),
    "scope": one_of("global", "microbatch"),
    "is_cap": number(least=0),
    "chain": TEXTS,
}

# The fields of `algo.schedule.<transform>.<option>`.
SCHEDULE = {"to": number(), "steps": whole(least=1), "shape": one_of(*SHAPES)}


def check(c: ConfigDict) -> None:
    """Refuses whatever can be known to be wrong before work starts.

    Args:
        c: The whole configuration.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    check_fields(c)
    _check_rollout(c.rollout, c.algo)
    _check_train(c.train, c.rollout.prompts)
    if c.warmup.batch % c.warmup.micro_batches:
        raise ValueError(f"warmup.micro_batches={c.warmup.micro_batches} must divide warmup.batch={c.warmup.batch}")
    _check_optim(c.optim)
    _check_lora(c.model)
    check_reward(c.reward, c.rollout.max_tokens)
    check_control(c.reward, c.rollout.refills)
    check_algo(c.algo, c.train, c.rollout)
    _check_eval(c.eval)


def _check_rollout(rollout: ConfigDict, algo: ConfigDict) -> None:
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
    corrected = algo.correction.name != "none"
    if algo.is_cap and corrected:
        raise ValueError(
            f"algo.is_cap={algo.is_cap} with algo.correction.name={algo.correction.name!r}: the first is short for "
            "'token_truncate'; set one of them"
        )
    if rollout.server and not (algo.is_cap or corrected):
        raise ValueError(
            f"algo.is_cap={algo.is_cap} with rollout.server={rollout.server!r}: another engine draws from a slightly "
            "different distribution; set it to about 2.0, the largest weight of the importance correction, or choose "
            "an algo.correction"
        )


def _check_train(train: ConfigDict, prompts: int) -> None:
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


def _check_optim(optim: ConfigDict) -> None:
    if optim.name == "sgd" and optim.weight_decay:
        raise ValueError(f"optim.weight_decay={optim.weight_decay} is not read by sgd; set it to 0, or use adamw")
    if optim.name in ("sgd", "adafactor") and optim.mu_dtype != "float32":
        raise ValueError(
            f"optim.mu_dtype={optim.mu_dtype!r} is not read by {optim.name}, which keeps no mean of the gradients; set "
            "it to 'float32', or use adamw, lion or muon"
        )


def _check_lora(model: ConfigDict) -> None:
    if not model.lora.rank:
        return
    legal = [f"{name}_proj" for name in WEIGHTS]
    if wrong := [name for name in model.lora.targets if name not in legal]:
        raise ValueError(f"model.lora.targets: {wrong[0]!r} is no matrix of a layer; these are {', '.join(legal)}")
    if not model.lora.targets or len(set(model.lora.targets)) < len(model.lora.targets):
        raise ValueError(
            f"model.lora.targets={tuple(model.lora.targets)} must name one or more of {', '.join(legal)}, each once"
        )
    if model.param_dtype != "float32":
        raise ValueError(
            f"model.param_dtype={model.param_dtype!r} with model.lora.rank={model.lora.rank}: frozen weights have the "
            "dtype of the computation and adapters are float32; set it to 'float32'"
        )


def check_algo(algo: ConfigDict, train: ConfigDict, rollout: ConfigDict) -> None:
    """Refuses a method with an unknown part, an option out of its range, or a contradiction to the rest of the run.

    Args:
        algo: The config section `algo`.
        train: The config section `train`.
        rollout: The config section `rollout`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    for key, rule in ALGO.items():
        if key not in algo:
            raise ValueError(f"algo.{key} is missing: it must be {rule}")
        check_value(f"algo.{key}", algo[key], rule)
    if missing := [name for name in algo.chain if name not in algo.transforms]:
        raise ValueError(
            f"algo.chain names {missing}, which algo.transforms does not describe; the transforms are "
            f"{', '.join(token_transforms.TRANSFORMS)}"
        )
    if unused := [name for name in algo.transforms if name not in algo.chain]:
        chain = ",".join((*algo.chain, *unused))
        raise ValueError(
            f"algo.transforms describes {unused}, which algo.chain does not use; add them in their place, such as "
            f"--config.algo.chain={chain}, or leave them out"
        )
    check_schedule(algo)
    advantage = named(algo.advantage)
    advantages.build(advantage)
    surrogates.build(named(algo.objective))
    token_transforms.build(transforms_of(algo), algo.scope, train.micro_batches, rollout.samples)
    if algo.scope == "microbatch" and train.layout == "packed":
        raise ValueError("train.layout='packed' has no micro-batches of whole groups for algo.scope='microbatch'")
    if algo.scope == "microbatch" and train.micro_batches == 1:
        raise ValueError(
            "algo.scope='microbatch' with train.micro_batches=1 is the same as 'global'; set "
            "train.micro_batches to 2 or more"
        )
    token_transforms.check_updates_per_rollout(transforms_of(algo), train.updates_per_rollout)
    _check_samples(rollout, advantage)


def check_schedule(algo: ConfigDict) -> None:
    """Refuses a schedule of what is no option of the chain, or that lacks a field; see `token_transforms.Schedule`.

    Args:
        algo: The config section `algo`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    for name, options in algo.get("schedule", ConfigDict()).to_dict().items():
        if name not in algo.chain:
            raise ValueError(f"algo.schedule.{name}: algo.chain has no such transform, only {', '.join(algo.chain)}")
        for option, moves in options.items():
            key = f"algo.schedule.{name}.{option}"
            if not isinstance(moves, dict) or not {"to", "steps"} <= moves.keys():
                raise ValueError(f"{key}={moves!r} must be {{to, steps, shape}}; shape is 'linear' if it is left out")
            if unknown := [k for k in moves if k not in SCHEDULE]:
                raise ValueError(f"{key}.{unknown[0]} is no field of it; it may have {', '.join(SCHEDULE)}")
            rule = of_options(token_transforms.TRANSFORMS[name]).get(option)
            if rule is None or rule.kind != "number":
                raise ValueError(f"{key}: {name} has no option of that name that is a number, and only these can move")
            for field, value in moves.items():
                check_value(f"{key}.{field}", value, SCHEDULE[field])
            check_value(f"{key}.to", moves["to"], rule)


def _check_samples(rollout: ConfigDict, advantage: tuple[str, dict[str, Any]]) -> None:
    if rollout.samples > 1:
        return
    if rollout.refills:
        raise ValueError(
            f"rollout.refills={rollout.refills} with rollout.samples=1: a group of one is always all right or all "
            "wrong, so each would be replaced; set rollout.refills to 0, or rollout.samples to 2 or more"
        )
    if advantages.reads_group(advantage):
        raise ValueError(
            f"rollout.samples=1 with algo.advantage={advantage[0]!r}: a response is compared with the others to its "
            "prompt, so every advantage would be 0 and nothing learnt; set rollout.samples to 2 or more, or use the "
            "advantage of reinforce_pp"
        )
    if rollout.prompts == 1 and advantage[0] == "reinforce_pp":
        raise ValueError(
            "rollout.samples=1 with rollout.prompts=1 and algo.advantage='reinforce_pp': a response is compared with "
            "the others of the rollout, and there are none; set rollout.samples or rollout.prompts to 2 or more"
        )


def _check_eval(evaluation: ConfigDict) -> None:
    for key in ("temperature", "top_p"):
        if evaluation[key] != 1 and not evaluation.samples:
            raise ValueError(
                f"eval.{key}={evaluation[key]} with eval.samples=0 has no effect: problems are decoded greedily; set "
                f"eval.samples to the number of sampled responses per problem, or eval.{key} to 1.0"
            )


def check_reward(reward: ConfigDict, max_tokens: int) -> None:
    """Refuses parts of the reward that do not exist, are not read, or contradict one another.

    Args:
        reward: The config section `reward`.
        max_tokens: `rollout.max_tokens`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    weights, own = reward.weights, reward.own.to_dict()
    taken = (*weights, *([PART] if reward.kind != "answer" else []), "mean", "std", "unscored")
    for name in own:
        if name in taken:
            raise ValueError(f"reward.own.{name}: choose a name without '/' that is none of {', '.join(taken)}")
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


def check_control(reward: ConfigDict, refills: int) -> None:
    """Refuses a control in the answer's place that would not count, or that dynamic sampling would reject.

    Args:
        reward: The config section `reward`.
        refills: `rollout.refills`.

    Raises:
        ValueError: Names the key, its value, and what would be right.
    """
    if reward.kind != "answer" and not reward.weights.answer:
        raise ValueError(
            f"reward.kind={reward.kind!r} with reward.weights.answer=0.0: the control has that weight; set it to 1.0"
        )
    if reward.kind == "none" and refills:
        raise ValueError(
            f"reward.kind='none' with rollout.refills={refills}: all rewards of a group are 0, so each group would be "
            "replaced; set rollout.refills to 0"
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
