"""Every test runs on eight virtual CPU devices, under strict rules, with a time limit, from empty caches."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs; without LLVM's optimisations it takes almost half as long.
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + flag

import ctypes  # noqa: E402
import faulthandler  # noqa: E402
import gc  # noqa: E402
from collections.abc import Generator, Iterator  # noqa: E402

import jax  # noqa: E402  (reads the flags)
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SLOW_LIMIT = 1800  # seconds for a test marked slow; the limit of the others is `timeout` in pyproject.toml
GRACE = 60  # seconds that a test has to fail after its limit, before its process is ended

_limit = pytest.StashKey[float]()
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # the terminal: pytest captures 2 while a test runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


# A test over its limit fails by a signal (pytest-timeout), with its traceback, and the process continues. A signal does
# not reach a test that is inside C code or that swallows exceptions. A minute later faulthandler, whose thread needs
# nothing from Python, prints the stacks of all threads and ends the process; xdist reports the test as a crash and
# starts another worker.


def pytest_timeout_set_timer(item: pytest.Item, settings) -> None:  # a private type of pytest-timeout
    item.stash[_limit] = settings.timeout + GRACE
    faulthandler.dump_traceback_later(item.stash[_limit], exit=True, file=item.config.stash[_stderr])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # pytest cancels every timer when a test fails, so a hanging teardown needs its own.
    if _limit in item.stash:
        faulthandler.dump_traceback_later(item.stash[_limit], exit=True, file=item.config.stash[_stderr])
    yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, bool, bool]:
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module", autouse=True)
def empty_caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees what a file compiled and cached: one worker that ran many files held more than 4 GB."""
    yield
    for value in vars(request.module).values():
        if getattr(value, "__module__", None) == request.module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps freed memory otherwise
        libc.malloc_trim(0)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of one configuration are the same programs: the second takes them from a cache on disk."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()
