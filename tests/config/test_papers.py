"""Every file in configs/ builds with every method, and the papers' tables are consistent."""

import importlib.util
import math
import pathlib
import re
import types

import pytest
from ml_collections import ConfigDict

from entropy_rl import config, evaluate
from entropy_rl.config import papers
from entropy_rl.config.recipes import RECIPES
from entropy_rl.stats.selection import count
from entropy_rl.training import engine

ROOT = pathlib.Path(__file__).parents[2]


def load(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {path.stem: load(path) for path in sorted((ROOT / "configs").glob("*.py"))}
TABLES = {name: module.MODELS for name, module in FILES.items() if hasattr(module, "MODELS")}
ROWS = [(name, model) for name, table in TABLES.items() for model in table]
# file, and what comes before the method in the argument after the colon
BEDS = list(FILES["study"].BEDS)
PREFIXES = [
    *((name, "") for name in FILES if name not in TABLES and name not in ("study", "one_chip")),
    *((name, f"{model},") for name, model in ROWS),
    *(("study", f"{bed},") for bed in BEDS),
    ("one_chip", "qwen2_5_0_5b,"),
]


@pytest.mark.parametrize("method", sorted(RECIPES))
@pytest.mark.parametrize("name, prefix", PREFIXES)
def test_every_config_builds_with_every_method(name: str, prefix: str, method: str):
    c = FILES[name].get_config(prefix + method)
    if method.endswith("_official"):
        c.train.micro_batches = 2
    config.check(c)
    engine.method_of(c.algo, c.rollout, c.train)


@pytest.mark.parametrize("name, prefix", PREFIXES)
def test_an_unknown_method_lists_the_legal_ones(name: str, prefix: str):
    with pytest.raises(ValueError, match=r"config method: unknown name 'grop'; legal names: grpo"):
        FILES[name].get_config(f"{prefix}grop")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("arg", ["clip_cov", "qwen3_8B,clip_cov", ",clip_cov", ""])
def test_an_unknown_model_lists_the_legal_ones(name: str, arg: str):
    model = arg.partition(",")[0]
    with pytest.raises(
        ValueError, match=f"config model: unknown name '{model}'; legal names: {', '.join(TABLES[name])}"
    ):
        FILES[name].get_config(arg)


def test_an_unknown_test_bed_lists_the_legal_ones():
    with pytest.raises(ValueError, match=f"config bed: unknown name 'countup'; legal names: {', '.join(BEDS)}"):
        FILES["study"].get_config("countup,grpo")


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_a_default(name: str):
    config.check(FILES[name].get_config())


@pytest.mark.parametrize("name, model", ROWS)
def test_a_row_reaches_the_config(name: str, model: str):
    row = TABLES[name][model]
    c = FILES[name].get_config(model)
    laid_out = (c.mesh.fsdp, c.train.micro_batches, c.optim.lr, c.rollout.slots, c.model.remat, c.rollout.tensor)
    assert laid_out == (row.fsdp, row.micro_batches, row.lr, row.slots, row.remat, row.tensor)
    assert c.model.source == row.source
    assert c.algo == FILES[name].get_config(f"{model},{row.method}").algo


@pytest.mark.parametrize("name, model", ROWS)
def test_a_row_uses_its_whole_pod(name: str, model: str):
    row: papers.Model = TABLES[name][model]
    chips = math.prod(int(n) for n in row.topology.partition(":")[2].split("x"))
    assert row.fsdp == chips
    config.check_mesh(FILES[name].get_config(model), chips, chips // row.tensor)


def test_statistics_per_micro_batch_come_with_whole_groups():
    mechanism = FILES["entropy_mechanism"]
    assert mechanism.get_config("qwen2_5_7b,clip_cov").train.layout == "packed"
    assert mechanism.get_config("qwen2_5_7b,clip_cov_official").train.layout == "group"


def test_the_runs_of_the_entropy_mechanism():
    mechanism = FILES["entropy_mechanism"]
    runs = mechanism.get_config("qwen2_5_7b"), mechanism.get_config("qwen2_5_3b")
    assert [(c.rollout.prompts, c.train.updates_per_rollout, c.rollout.refills) for c in runs] == [
        (256, 8, 9),
        (512, 16, 9),
    ]
    assert runs[1].train.steps * runs[1].train.updates_per_rollout == 2400  # gradient steps, by the paper


def test_every_config_named_in_a_document_or_script_exists():
    pages = [
        ROOT / "README.md",
        *ROOT.glob("launch/*"),
        *ROOT.glob("results/**/*.sh"),
        *ROOT.glob("results/**/README.md"),
    ]
    named = [
        (page, found)
        for page in [*pages, *ROOT.glob("configs/*.py"), *ROOT.glob("entropy_rl/**/*.py")]
        for found in re.findall(r"\bconfigs/(\w+)\.py(?::(\w+))?", page.read_text(encoding="utf-8"))
    ]
    assert named
    for page, (name, first) in named:
        if name == "mine":  # the reader's file
            continue
        assert name in FILES, f"{page} names configs/{name}.py"
        legal = {"study": BEDS, "one_chip": FILES["one_chip"].SOURCES}.get(name, TABLES.get(name, RECIPES))
        assert not first or first in legal, f"{page} names configs/{name}.py:{first}"


def test_evaluation_at_the_papers_temperature():
    """The command that a header documents, without --temperature, samples at the temperature that the header states."""
    mechanism, beyond = FILES["entropy_mechanism"], FILES["beyond_80_20"]
    for arg, module, expected in (
        ("qwen2_5_7b", mechanism, (32, 0.6, 1.0)),
        ("qwen2_5_32b", mechanism, (32, 0.6, 1.0)),
        ("qwen3_8b", beyond, (16, 1.0, 1.0)),
        ("qwen3_14b_script", beyond, (32, 1.0, 0.7)),
    ):
        assert f"--k={expected[0]}" in module.__doc__ or arg.endswith("_script")
        assert evaluate.sampled_by(module.get_config(arg).eval, expected[0], None, None) == expected


def test_where_the_80_20_script_differs_from_its_paper():
    beyond = FILES["beyond_80_20"]
    paper, script = (beyond.get_config(f"qwen3_14b{suffix},forking") for suffix in ("", "_script"))

    def differing(c: ConfigDict) -> tuple:
        rate, reward = (c.optim.weight_decay, c.optim.warmup_updates), (c.reward.weights.overlong, c.rollout.refills)
        return *rate, *reward, c.eval.top_p, c.algo.objective.dual

    assert differing(paper) == (0.0, 0, 0.5, 9, 1.0, None)
    assert differing(script) == (0.1, 160, 1.0, 15, 0.7, 10.0)
    assert paper.model == script.model and paper.algo.transforms == script.algo.transforms
    official = beyond.get_config("qwen3_14b_script,forking_official")
    assert (official.algo.scope, official.algo.transforms.keep_top_entropy.up) == ("microbatch", True)


def test_where_the_entropy_mechanisms_scripts_differ_from_its_paper():
    paper, script = (FILES["entropy_mechanism"].get_config(f"qwen2_5_7b{suffix}") for suffix in ("", "_script"))
    assert (paper.eval.every, paper.eval.samples, paper.eval.temperature) == (20, 4, 0.6)
    assert (script.eval.every, script.eval.samples, script.eval.temperature) == (4, 0, 1.0)
    assert paper.algo == script.algo and paper.rollout == script.rollout and paper.data == script.data


@pytest.mark.parametrize("name, model", [row for row in ROWS if row[0] == "entropy_mechanism"])
def test_the_entropy_mechanisms_prompts_are_turns_of_a_chat_if_the_model_has_a_template(name: str, model: str):
    c = FILES[name].get_config(model)
    assert c.data.chat == bool(c.data.system_prompt) == TABLES[name][model].source.startswith("Qwen/")
    assert (c.data.template == "{question}") == c.data.chat
    assert (c.optim.weight_decay, c.reward.weights.overlong) == (0, 0)


@pytest.mark.parametrize("name, prefix", PREFIXES)
@pytest.mark.parametrize("tokens", [100, 260, 5_000, 1_000_000])
def test_a_control_is_of_the_size_of_what_it_controls(name: str, prefix: str, tokens: int):
    """The number of tokens that a method touches, of an update with that many."""

    def touched(method: str) -> int:
        ((transform, options),) = config.transforms_of(FILES[name].get_config(prefix + method).algo)
        if transform == "matched_norm":
            _, options = options["inner"]
        return int(count(options["fraction"], tokens))

    assert touched("clip_cov") == touched("random_positive_clip") == touched("matched_norm")
    assert touched("forking") == touched("random_mask") == tokens - touched("bottom80")


@pytest.mark.parametrize("name, prefix", PREFIXES)
def test_the_control_of_the_norm_has_the_very_options_of_clip_cov(name: str, prefix: str):
    ((_, clip_cov),) = config.transforms_of(FILES[name].get_config(f"{prefix}clip_cov").algo)
    ((_, matched),) = config.transforms_of(FILES[name].get_config(f"{prefix}matched_norm").algo)
    assert matched["inner"] == ("clip_cov", clip_cov)
