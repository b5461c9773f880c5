"""Checkpoints: what is kept, what is returned, and what is refused. Their faults are in tests/faults."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import ABSTRACT, Adaptive, assert_bitwise, cut_chunk, flip_bit, make_state, saved, warnings_in

from entropy_rl.record.checkpoint import Checkpoints


def test_round_trip_is_bitwise_with_structure_and_meta(tmp_path):
    checkpoints = saved(tmp_path, 3)
    state, meta = checkpoints.restore(ABSTRACT)
    assert_bitwise(state, make_state(3))
    assert isinstance(state["tokens"][0], Adaptive)
    assert meta == {"config": "hash3", "position": [3, None], "step": 3}


def test_nothing_saved_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert (checkpoints.steps(), checkpoints.latest(), checkpoints.restore(ABSTRACT)) == ([], None, None)


def test_saving_logs_nothing(tmp_path, caplog):
    saved(tmp_path, 1)
    assert warnings_in(caplog) == ""


def test_the_newest_are_kept_and_an_older_one_can_be_restored(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 10, 11)
    assert checkpoints.steps() == [10, 11]
    state, meta = checkpoints.restore(ABSTRACT, step=10)
    assert_bitwise(state, make_state(10))
    assert meta["step"] == 10
    with pytest.raises(ValueError, match=r"no checkpoint of step 1; the steps are \[10, 11\]"):
        checkpoints.restore(ABSTRACT, step=1)


def test_keep_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.keep: got 0"):
        Checkpoints(tmp_path, keep=0)


def test_every_kth_is_kept_for_good_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in (0, 2, 4, 5, 6, 8, 9, 11, 13):
        checkpoints.save(step, make_state(step), {})
    assert checkpoints.steps() == [0, 4, 8, 11, 13]
    assert_bitwise(checkpoints.restore(ABSTRACT, step=4)[0], make_state(4))
    checkpoints.save(7, make_state(7), {})  # after a fallback: what is later was abandoned, kept for good or not
    assert checkpoints.steps() == [0, 4, 7]
    with pytest.raises(ValueError, match=r"checkpoint\.keep_every: got -1, expected at least 0"):
        Checkpoints(tmp_path, keep_every=-1)


def test_a_step_can_be_saved_again_and_later_ones_are_abandoned(tmp_path):
    """After falling back to 4, the run comes to 6 again; 8 belongs to the history that it has abandoned."""
    checkpoints = saved(tmp_path, 4, 8)
    checkpoints.save(6, make_state(6), {})
    assert checkpoints.steps() == [4, 6]
    checkpoints.save(6, make_state(7), {})
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(7))


@pytest.mark.parametrize("leaf, got", [(3, "int"), (np.zeros(2), "ndarray"), (jax.random.key(0), "key<fry>")])
def test_a_leaf_that_is_no_array_of_numbers_is_refused(tmp_path, leaf, got):
    with pytest.raises(ValueError, match=f"leaf 'a' is {got}"):
        Checkpoints(tmp_path).save(1, {"a": leaf}, {})


def test_two_leaves_with_the_same_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the name 'a\.b' is empty or belongs to two leaves"):
        Checkpoints(tmp_path).save(1, {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, {})


def test_a_file_in_the_place_of_a_checkpoint_is_named(tmp_path):
    checkpoints = saved(tmp_path / "in", 3)
    checkpoints.refuse_files()
    (tmp_path / "in" / "note.txt").touch()
    checkpoints.refuse_files()
    (tmp_path / "in" / "7").touch()
    with pytest.raises(ValueError, match=r"in/7 is a file, where the checkpoint of that step has to go; move it away"):
        checkpoints.refuse_files()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file, but checkpoints go into a folder"):
        Checkpoints(tmp_path / "file").refuse_files()


def test_all_can_be_removed_but_not_what_others_put_there(tmp_path):
    saved(tmp_path / "a", 1, 2).clear()
    assert not (tmp_path / "a").exists()
    Checkpoints(tmp_path / "a").clear()
    kept = saved(tmp_path / "b", 1)
    (tmp_path / "b" / "1" / "note").touch()
    kept.clear()
    assert [str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*")] == ["1", "1/note"]


def test_a_part_is_restored_and_nothing_else_is_read(tmp_path, caplog):
    checkpoints, part = saved(tmp_path, 1, 2), {"params": ABSTRACT["params"]}
    others = [folder for folder in (tmp_path / "2/state").iterdir() if folder.name.startswith(("opt.", "tokens."))]
    assert len(others) > 5
    for folder in others:
        shutil.rmtree(folder)
    state, meta = checkpoints.restore(part, partial=True)
    assert_bitwise(state, {"params": make_state(2)["params"]})
    assert meta["step"] == 2 and warnings_in(caplog) == ""
    assert checkpoints.restore(ABSTRACT)[1]["step"] == 1  # the whole state needs them


def test_damage_of_a_part_is_named_and_falls_back(tmp_path, caplog):
    checkpoints, part = saved(tmp_path, 1, 2), {"params": ABSTRACT["params"]}
    flip_bit(tmp_path / "2/state/params.layers.w/0.0.0", 100)
    state, meta = checkpoints.restore(part, partial=True)
    assert_bitwise(state, {"params": make_state(1)["params"]})
    assert meta["step"] == 1 and "leaf 'params.layers.w' (file params.layers.w/0.0.0) has CRC32" in warnings_in(caplog)
    cut_chunk(tmp_path / "1/state/params.embed")
    with pytest.raises(RuntimeError, match=r"no undamaged checkpoint among steps \[2, 1\]"):
        checkpoints.restore(part, partial=True)


def test_a_part_has_to_be_there_in_its_shape(tmp_path):
    checkpoints, params = saved(tmp_path, 1), ABSTRACT["params"]
    with pytest.raises(ValueError, match=r"it lacks leaf 'params\.more'$"):
        checkpoints.restore({"params": params | {"more": params["embed"]}}, partial=True)
    with pytest.raises(ValueError, match=r"leaf 'params\.embed' was saved as float32\[16, 8\], but float32\[8, 16\]"):
        checkpoints.restore({"params": params | {"embed": jax.ShapeDtypeStruct((8, 16), jnp.float32)}}, partial=True)


def test_dtypes_may_be_taken_from_what_was_saved(tmp_path):
    """What one device computed in bfloat16 can be read where another dtype is the usual one."""
    checkpoints = saved(tmp_path, 1)
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16), ABSTRACT["params"])
    with pytest.raises(ValueError, match=r"leaf 'params\.embed' was saved as float32"):
        checkpoints.restore({"params": other}, partial=True)
    for step in (None, 1):
        got, _ = checkpoints.restore(checkpoints.as_saved({"params": other}, step), partial=True)
        assert_bitwise(got["params"], make_state(1)["params"])
    assert checkpoints.as_saved(ABSTRACT, 7) == Checkpoints(tmp_path / "none").as_saved(ABSTRACT) == ABSTRACT


def test_a_leaf_that_is_newer_than_the_checkpoint_has_its_value_from_before_step_1(tmp_path):
    checkpoints, state = saved(tmp_path, 1), make_state(1)
    now = ABSTRACT | {"newer": {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": ABSTRACT["counters"]["step"]}}
    fresh = {"newer": {"a": jnp.array([1.0, 2.0]), "b": jnp.int32(7)}, "counters": {"step": jnp.int32(9)}}
    got, _ = checkpoints.restore(now, fresh=fresh)
    assert_bitwise(got, state | {"newer": fresh["newer"]})  # the step that was saved is not replaced
    with pytest.raises(ValueError, match=r"it lacks leaf 'newer\.b'$"):
        checkpoints.restore(now, fresh={"newer": {"a": fresh["newer"]["a"]}})
