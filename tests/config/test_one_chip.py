"""configs/one_chip.py and the table of results/one_chip."""

import json
import pathlib
import runpy
import sys

import pytest

from entropy_rl import config

ROOT = pathlib.Path(__file__).parents[2]
FILE = runpy.run_path(str(ROOT / "configs" / "one_chip.py"))
ROWS = json.loads((ROOT / "configs" / "one_chip.json").read_text())


def test_every_row_that_fits_is_a_legal_configuration():
    fitting = [name for name, row in ROWS.items() if row["fits"]]
    assert len(fitting) > 100
    for name in fitting:
        c = FILE["get_config"](name)
        config.check(c)
        assert (c.model.lora.rank == 16) == name.endswith(",lora")
        flat = {key: c[key.split(".")[0]][key.split(".", 1)[1]] for key in ROWS[name]["settings"]}
        assert flat == ROWS[name]["settings"]


def test_a_row_that_does_not_fit_says_what_decides_it():
    with pytest.raises(ValueError, match="does not fit on one t4: the state alone: 18.5 of 14.8 GB"):
        FILE["get_config"]("qwen2_5_1_5b,t4")
    with pytest.raises(ValueError, match="unknown name 'v9'.*nor is it a chip \\(v5e, "):
        FILE["get_config"]("qwen2_5_1_5b,v9")
    with pytest.raises(ValueError, match="none of the models qwen2_5_0_5b"):
        FILE["get_config"]("qwen2_5_72b")
    with pytest.raises(ValueError, match="'here' is cpu"):
        FILE["get_config"]("qwen2_5_0_5b,here")


def test_a_method_and_the_lengths_are_taken_in_any_order():
    c = FILE["get_config"]("qwen2_5_1_5b,kl_cov,lora,2048,l4")
    assert (tuple(c.algo.chain), c.rollout.max_tokens, c.model.lora.rank) == (("kl_cov",), 2048, 16)


def test_the_page_has_the_table_of_the_rows(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    table = runpy.run_path(str(ROOT / "results" / "one_chip" / "run.py"))["table"](ROWS)
    assert table in (ROOT / "results" / "one_chip" / "README.md").read_text()
