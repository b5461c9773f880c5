"""The part that the papers' configurations share: long runs on DAPO-Math-17k, with a table row per model.

configs/entropy_mechanism.py and configs/beyond_80_20.py add the tables and the numbers of their papers.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from entropy_rl.config.defaults import default
from entropy_rl.config.recipes import apply_recipe


class Model(NamedTuple):
    """A row of a paper's table: a model, and how it is laid out on a TPU pod.

    Attributes:
        source: The model's name on the Hugging Face hub.
        topology: The pod, as `entropy_rl.preflight --topology` takes it.
        fsdp: `mesh.fsdp`, all chips of the pod.
        micro_batches: `train.micro_batches`, per update.
        method: The method, unless the command line names one.
        lr: `optim.lr`.
        slots: `rollout.slots`, responses decoded at the same time; 0: as many as fit in memory.
        remat: `model.remat`, what the backward pass recomputes.
        tensor: `rollout.tensor`, chips that share one copy of the weights during a rollout.
    """

    source: str
    topology: str
    fsdp: int
    micro_batches: int
    method: str
    lr: float
    slots: int
    remat: str = "full"
    tensor: int = 1


def parse(arg: str, models: Mapping[str, Model]) -> tuple[str, str]:
    """The argument after the colon of `--config=file.py:model,method`, as (model, method).

    >>> models = {"qwen3_8b": Model("Qwen/Qwen3-8B-Base", "v5p:4x4x4", 64, 16, "forking", 1e-6, 512)}
    >>> parse("qwen3_8b,dapo", models), parse("qwen3_8b", models)
    (('qwen3_8b', 'dapo'), ('qwen3_8b', 'forking'))

    Args:
        arg: A key of `models`; after a comma, optionally, a method.
        models: The paper's table.

    Raises:
        ValueError: If no model has that name; the message lists the names. The method is not checked here.
    """
    name, _, method = arg.partition(",")
    if name not in models:
        raise ValueError(f"config model: unknown name {name!r}; legal names: {', '.join(models)}")
    return name, method or models[name].method


def with_scripts(models: Mapping[str, Model]) -> dict[str, Model]:
    """Each model twice: by its name as the paper has the run, and as name_script as the authors' published script does.

    >>> list(with_scripts({"qwen3_8b": Model("Qwen/Qwen3-8B-Base", "v5p:4x4x4", 64, 16, "forking", 1e-6, 512)}))
    ['qwen3_8b', 'qwen3_8b_script']
    """
    return {name + suffix: model for suffix in ("", "_script") for name, model in models.items()}


def base(model: Model) -> ConfigDict:
    """The defaults changed to what both papers' runs have in common, for one model; the method is still "grpo"."""
    c = default()
    c.model.source, c.model.remat = model.source, model.remat
    c.data.task, c.data.template, c.data.held_out_modulus = "dapo-math-17k", "paper_plain", 0
    c.data.max_prompt_len, c.data.bad_rows = 2048, "skip"
    c.rollout.slots, c.rollout.tensor = model.slots, model.tensor
    c.reward.workers = 16
    c.optim.lr, c.optim.grad_clip = model.lr, 1.0
    c.train.micro_batches = model.micro_batches
    c.train.layout = "packed"  # responses are long and of very different lengths
    c.rollout.refills = 9  # groups that are all right or all wrong are replaced; both scripts: at most 10 batches
    c.eval.every, c.eval.problems, c.eval.batch = 20, 500, 256
    c.eval.sets = ConfigDict({name: {"task": name} for name in ("aime-2024", "aime-2025", "amc-2023", "math-500")})
    c.warmup.batch = 256  # there is no warm-up, but the number has to spread over the mesh
    c.mesh.fsdp = model.fsdp
    return c


def with_method(c: ConfigDict, method: str) -> ConfigDict:
    """Applies a recipe; its statistics per micro-batch, if it has them, need the layout of whole groups.

    These groups have to spread over mesh.data × mesh.fsdp, so an `_official` method runs on as many chips as a
    micro-batch has prompts, or on more with mesh.tensor.

    Raises:
        ValueError: If no recipe has that name; the message lists the names.
    """
    apply_recipe(c, method)
    if c.algo.scope == "microbatch":
        c.train.layout = "group"
    return c
