"""The group of partition 0, in every form in which XLA writes groups."""

import pytest

from entropy_rl.preflight.groups import first_group


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={1}", (0, 2)),
        ("replica_groups=[2,2]<=[4], dimensions={1}", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, x={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, x={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}, x={1}", (0, 2)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
        ("dimensions={1}", ()),
    ],
)
def test_groups_in_every_form(attributes, group):
    assert first_group(attributes) == group
