"""GSM8K on one chip: 8 prompts with 8 responses per step, in full or by LoRA.

    python -m entropy_rl.train --config=configs/one_chip.py:qwen2_5_0_5b,v5e --workdir=runs/gsm8k
    python -m entropy_rl.train --config=configs/one_chip.py:qwen2_5_1_5b,v5e,2048,lora,kl_cov --workdir=runs/gsm8k-lora

After the colon, in any order and all but the first optional: a model and a chip of the table in
results/one_chip/README.md ("here": the chip of this machine); tokens per response, 512 or 2048; "lora"; a method of
entropy_rl/config/recipes.py. What fits, and the pieces, remat and slots that make it fit, were found by
results/one_chip/run.py and are in one_chip.json beside this file: compiled for TPUs, by arithmetic for GPUs. Nothing
here has been trained to its end yet.
"""

import json
import pathlib

from ml_collections import ConfigDict

from entropy_rl import config
from entropy_rl.config.recipes import RECIPES
from entropy_rl.preflight import chips
from entropy_rl.preflight.suggest import RANK

TABLE = pathlib.Path(__file__).with_suffix(".json")
SOURCES = {
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B",
    "qwen2_5_3b": "Qwen/Qwen2.5-3B",
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_1_7b": "Qwen/Qwen3-1.7B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "olmo2_1b": "allenai/OLMo-2-0425-1B",
    "smollm3_3b": "HuggingFaceTB/SmolLM3-3B",
    "gemma3_1b": "google/gemma-3-1b-it",
}
CHIPS = ("v5e", "v6e", "v5p", "t4", "l4", "a10g", "rtx4090", "a100", "h100", "h200")
SHAPES = {"v5e": "1x1", "v6e": "1x1", "v5p": "1x1x1"}  # of one chip, as preflight's --topology; one GPU is "1"
TOKENS = (512, 2048)


def get_config(argument: str = "qwen2_5_0_5b") -> ConfigDict:
    model, chip, tokens, lora, method = _parse(argument)
    c = work(model, tokens, lora, method)
    if chip is not None:
        name = row_name(model, chip, tokens, lora)
        row = json.loads(TABLE.read_text()).get(name)
        if row is None:
            raise ValueError(f"--config=configs/one_chip.py:{argument}: {name!r} is not in {TABLE.name}")
        if not row["fits"]:
            raise ValueError(
                f"--config=configs/one_chip.py:{argument}: it does not fit on one {chip}: {row['decided_by']}"
            )
        c.update_from_flattened_dict(row["settings"])
    return c


def work(model: str, tokens: int, lora: bool, method: str = "grpo") -> ConfigDict:
    """The run before anything is changed to make it fit."""
    c = config.default()
    c.model.source = SOURCES[model]
    c.data.task, c.data.template, c.data.max_prompt_len = "gsm8k", "paper_plain", 256
    c.data.held_out_modulus = 0
    c.eval.sets = {"gsm8k": {"task": "gsm8k-test", "settings": {}}}
    c.eval.every, c.eval.problems, c.eval.batch = 20, 256, 64
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 8, 8, tokens
    c.train.updates_per_rollout, c.train.steps = 2, 200
    c.optim.lr, c.checkpoint.every, c.mesh.data = 1e-6, 20, 1
    if lora:
        c.model.lora.rank, c.optim.lr = RANK, 2e-5
    return config.apply_recipe(c, method)


def chip_here() -> str:
    """The chip of the table with the most memory that this machine's first device has.

    Raises:
        ValueError: It is no TPU or GPU with as much as the smallest.
    """
    import jax

    device = jax.devices()[0]
    stats = (device.memory_stats() or {}) if device.platform in ("tpu", "gpu") else {}
    room = 1.01 * stats.get("bytes_limit", 0)
    alike = [name for name in CHIPS if chips.CHIPS[name].is_tpu == (device.platform == "tpu")]
    fitting = [name for name in alike if chips.CHIPS[name].memory <= room]
    if not fitting:
        raise ValueError(f"--config: 'here' is {device.device_kind}, and the table begins with {', '.join(alike)}")
    return max(fitting, key=lambda name: chips.CHIPS[name].memory)


def row_name(model: str, chip: str, tokens: int, lora: bool) -> str:
    """The row of the table."""
    return f"{model},{chip},{tokens}" + ",lora" * lora


def _parse(argument: str) -> tuple[str, str | None, int, bool, str]:
    """(model, chip or None, tokens, by LoRA, method)."""
    model, *rest = argument.split(",")
    chip, tokens, lora, method = None, TOKENS[0], False, "grpo"
    for word in rest:
        if word in CHIPS or word == "here":
            chip = chip_here() if word == "here" else word
        elif word in map(str, TOKENS):
            tokens = int(word)
        elif word == "lora":
            lora = True
        elif word in RECIPES:
            method = word
        else:
            raise ValueError(
                f"config method: unknown name {word!r}; legal names: {', '.join(RECIPES)}; nor is it a chip "
                f"({', '.join(CHIPS)}, here), 512, 2048, or lora"
            )
    if model not in SOURCES:
        raise ValueError(
            f"--config=configs/one_chip.py:{argument}: {model!r} is none of the models {', '.join(SOURCES)}"
        )
    return model, chip, tokens, lora, method
