"""The share of a GPU's memory that JAX takes."""

import os
import subprocess
import sys

import pytest

SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.mark.parametrize("given, wanted", [(None, "0.92"), ("0.5", "0.5")])
def test_jax_takes_most_of_a_gpu_unless_the_environment_sets_another_share(given, wanted):
    env = {key: value for key, value in os.environ.items() if key != SHARE} | ({SHARE: given} if given else {})
    script = f"import os; from entropy_rl.runtime import host; host.prepare(); print(os.environ[{SHARE!r}])"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [wanted], done.stderr[-2000:]
