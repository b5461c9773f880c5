"""Topologies by name."""

import pytest

from entropy_rl.preflight import chips


@pytest.mark.parametrize("text", ["v5p", "v5p:4x4", "v9:2x2", "h100:2x2", "v5e:axb"])
def test_an_unknown_topology_is_an_error(text):
    with pytest.raises(ValueError, match=rf"--topology='{text}'"):
        chips.parse(text)
    assert chips.parse("v5p:4x4x8").size == 128 and str(chips.parse("v6e:16x16")) == "v6e:16x16"
