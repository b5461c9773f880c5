"""Files replaced as a whole, and the run's folder."""

import pytest
from etils import epath

from entropy_rl.record import files


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = epath.Path(tmp_path) / "x.json"
    files.replace(path, "1")
    files.replace(path, "2")
    assert path.read_text() == "2" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path):
    path = epath.Path(tmp_path) / "x.json"
    files.replace(path, "1")
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        files.replace(path, "2\ud800")
    assert path.read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, below):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"--workdir=.*run.*: .*run is a file; name a directory"):
        files.make_folder(epath.Path(tmp_path / "run" / below), "--workdir")
    files.make_folder(epath.Path(tmp_path / "new" / below), "--workdir")
    assert (tmp_path / "new" / below).is_dir()


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(OSError, match="--workdir=/proc/run cannot be made: No such file"):
        files.make_folder(epath.Path("/proc/run"), "--workdir")
