"""SmolLM2 before and after GRPO on sums, on the task that it was trained on and on one that it never saw: README.md."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

_BASE = pathlib.Path(__file__).parents[2] / "configs" / "smollm2.py"


def get_config() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("smollm2", _BASE)
    assert spec and spec.loader
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    c = base.get_config("grpo")
    c.eval.sets.chain_sum = {"task": "chain_sum", "settings": c.data.settings.to_dict()}
    c.eval.sets.basic_arithmetic = {
        "task": "basic_arithmetic",
        "settings": dict(
            min_terms=2, max_terms=3, min_digits=1, max_digits=1, operators=["+", "-"], allow_parentheses=False
        ),
    }
    c.data.max_prompt_len = 32
    return c
