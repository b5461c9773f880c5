"""What the tests of faults share: compiled programs, and a run that nothing interrupted."""

import fcntl
import pathlib
import shutil
from collections.abc import Iterator

import jax
import pytest
import small_runs
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> pathlib.Path:
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cache(shared: pathlib.Path) -> pathlib.Path:
    """Where all runs of the tests keep their compiled programs."""
    return shared / "cache"


@pytest.fixture(scope="session")
def whole(shared: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """The small run, ten steps from start to end. Tests copy it and leave it as it is."""
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            small_runs.finish(shared / "whole", cache)
            (shared / "done").touch()
    return shared / "whole"


@pytest.fixture
def stopped(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run as it was after step 8 of 10, but for rows that a resumed run drops. It evaluates at step 9."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/10")
    return tmp_path / "run"


@pytest.fixture
def compiled_once(cache: pathlib.Path) -> Iterator[None]:
    """Runs in the test's own process keep their compiled programs in `cache` too."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(cache / "xla"), 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
