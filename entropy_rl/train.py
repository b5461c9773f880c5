"""Trains a policy in a run directory, or resumes the run that is there.

python -m entropy_rl.train --config=configs/quickstart.py --workdir=runs/q [--config.optim.lr=1e-6]
"""

from entropy_rl.runtime import preemption

if __name__ == "__main__":
    preemption.STOP.install()  # first of all: the imports below take seconds, and a configuration imports JAX

# ruff: noqa: E402
import logging as python_logging
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from entropy_rl.config import check
from entropy_rl.config.command_line import ConfigFlag
from entropy_rl.rewards import GradersBroken
from entropy_rl.runtime import distributed, host

_HERE = str(pathlib.Path(__file__).parent)
_CONFIG = ConfigFlag("The configuration, file.py or file.py:method.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; a run found there is resumed.", required=True)
_FORCE = flags.DEFINE_bool("force", False, "Resume even if the run was started with another configuration.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Trace this many steps, from the third on, into WORKDIR/profile.", 0)

_WARM_UP_OF = flags.DEFINE_string("warm_up_of", "", "A run with the same warm-up, whose parameters after it are taken.")


def _is_shown(record: python_logging.LogRecord) -> bool:
    """Whether a message is shown: all of this package's are, of other libraries only warnings and errors."""
    return record.levelno > python_logging.INFO or _HERE in record.pathname


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_shown)
    try:
        c = _CONFIG.load()
        distributed.initialize()
        if not distributed.first():
            logging.set_verbosity(logging.WARNING)
        host.prepare()
        check(c)
        from entropy_rl import loop  # only now that the configuration is known to be right: it takes seconds

        loop.run(c, _WORKDIR.value, _FORCE.value, _PROFILE.value, _WARM_UP_OF.value)
    except Exception as error:
        if not is_expected(error):
            raise
        sys.exit(f"error: {error}")


def is_expected(error: Exception) -> bool:
    """Whether an error's sentence is all that the user needs: it is about what was given, or the disk, not the code.

    A RuntimeError is such a sentence if this package raised it; JAX raises others.
    """
    if type(error) is RuntimeError:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        return frame is not None and frame.tb_frame.f_code.co_filename.startswith(_HERE)
    return isinstance(error, ValueError | OSError | GradersBroken)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=_CONFIG.parse)
