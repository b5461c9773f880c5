"""The configuration of a run directory, read back for use."""

import json

import pytest

from entropy_rl import config, policy
from entropy_rl.config.recipes import RECIPES


@pytest.mark.parametrize("method", sorted(RECIPES))
def test_the_methods_part_is_the_runs_own(tmp_path, method):
    text = json.dumps(config.apply_recipe(config.default(), method).to_dict(), sort_keys=True)
    (tmp_path / "config.json").write_text(text)
    assert json.dumps(policy.config_of(str(tmp_path)).to_dict(), sort_keys=True) == text


def test_a_field_that_an_earlier_version_lacked_has_its_default(tmp_path):
    saved = config.default().to_dict()
    del saved["log"]["rollouts"], saved["algo"]["schedule"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert policy.config_of(str(tmp_path)).to_dict() == config.default().to_dict()
