"""Work that fails on one of two processes, for the tests.

python -m agreement FOLDER
"""

import pathlib
import sys

import jax

from entropy_rl.runtime import distributed


def work(items: list[int]) -> list[int]:
    if 3 in items:
        raise OSError("no such device")
    return [10 * x for x in items]


if __name__ == "__main__":
    distributed.initialize()
    found = [distributed.share([0, 1, 2], work)]
    try:
        distributed.share([0, 1, 2, 3], work)
    except (OSError, RuntimeError) as error:
        found.append(f"{type(error).__name__}: {error}")
    found.append(distributed.anyone(jax.process_index() == 1))
    (pathlib.Path(sys.argv[1]) / f"{jax.process_index()}").write_text(repr(found))
