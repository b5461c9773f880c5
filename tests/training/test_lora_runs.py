"""Whole runs with adapters, other optimisers and bfloat16 parameters: they resume bit for bit; their policy is read."""

import dataclasses

import jax
import numpy as np
import pytest
import small_runs
from tiny_models import FAMILIES, random_params, tiny_tokenizer

import entropy_rl as erl
from entropy_rl import loop
from entropy_rl.model import hf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]

LORA = {"model.lora.rank": 3, "model.lora.alpha": 6.0, "checkpoint.hf_every": 2, "measure.every": 2, "optim.lr": 1e-2}
HALF = {"model.param_dtype": "bfloat16", "optim.name": "muon", "optim.mu_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    cfg = dataclasses.replace(FAMILIES["llama"], eos_ids=(0,), max_positions=256)
    hf.save_folder(folder, cfg, random_params(cfg), tiny_tokenizer())
    return folder


def run(workdir, base, steps, method="adaptive_entropy", **changes):
    c = small_runs.get_config(method)
    c.model.source, c.data.max_prompt_len, c.rollout.max_tokens = str(base), 80, 40
    c.warmup.updates, c.train.steps, c.eval.every = 4, steps, 2
    c.update_from_flattened_dict(changes)
    loop.run(c, str(workdir))
    return workdir


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base):
    return run(tmp_path_factory.mktemp("whole"), base, 4, "reference_kl", **LORA)


def test_a_run_of_adapters_resumes_bit_for_bit(whole, base, tmp_path):
    run(tmp_path, base, 2, "reference_kl", **LORA)
    run(tmp_path, base, 4, "reference_kl", **LORA)
    assert small_runs.differences(whole, tmp_path, 4) == []
    moments = [name for name in small_runs.leaves(whole, 4) if name.startswith("opt_state") and "dtype" not in name]
    assert moments and all("_lora_" in name or "count" in name for name in moments)


def test_a_run_of_bfloat16_parameters_resumes_bit_for_bit(base, tmp_path):
    one = run(tmp_path / "one", base, 4, **HALF)
    run(tmp_path / "two", base, 2, **HALF)
    assert small_runs.differences(one, run(tmp_path / "two", base, 4, **HALF), 4) == []


def test_a_rate_that_falls_is_resumed_with_its_length(base, tmp_path):
    more = {"optim.schedule": "cosine", "optim.warmup_updates": 2, "optim.name": "adafactor", "warmup.updates": 0}
    run(tmp_path, base, 2, **more)
    with pytest.raises(ValueError, match=r"train\.steps: 2 in the run, 3 now .*falls over its updates"):
        run(tmp_path, base, 3, **more)


def test_the_policy_of_a_run_is_merged_wherever_it_is_read(whole, base, tmp_path):
    """From the checkpoint, from the Hugging Face folder, from PEFT's folder: the same logits; not those of the base."""
    tokens = np.random.default_rng(0).integers(3, 276, (2, 7))
    places = whole, whole / "hf/step-00000004", whole / "hf/step-00000004-adapter", base
    run_, folder, adapter, before = (np.asarray(erl.load(str(x)).logits(tokens, tokens * 0 + 1)) for x in places)
    np.testing.assert_allclose(folder, run_, atol=1e-4)
    np.testing.assert_allclose(adapter, run_, atol=1e-4)
    assert np.abs(before - run_).max() > 1e-2
    further = run(tmp_path, whole / "hf/step-00000004-adapter", 1, **LORA | {"warmup.updates": 0})
    first = erl.load(str(further), step=1).params
    start = erl.load(str(whole)).params
    assert np.array_equal(first["embed"], start["embed"]) and not np.array_equal(
        first["layers"]["q"], start["layers"]["q"]
    )
    assert max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, start)), strict=True)) < 0.2
