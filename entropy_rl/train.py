"""python -m entropy_rl.train --config=configs/quickstart.py --workdir=runs/q [--config.optim.lr=1e-6]"""

import logging as python_logging
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_HERE = str(pathlib.Path(__file__).parent)
_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, file.py or file.py:method.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; a run found there goes on.", required=True)
_FORCE = flags.DEFINE_bool("force", False, "Go on although the configuration is not the one the run started with.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Trace this many steps, from the third on, into WORKDIR/profile.", 0)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # of the libraries' own talk, only what is a warning
    handler.addFilter(lambda record: record.levelno > python_logging.INFO or _HERE in record.pathname)
    # after the flags are known to be right: these bring in jax and transformers
    from entropy_rl import loop
    from entropy_rl.runtime import distributed, host

    try:
        distributed.initialize()
        if not distributed.first():
            logging.set_verbosity(logging.WARNING)
        host.prepare()
        loop.run(_CONFIG.value, _WORKDIR.value, _FORCE.value, _PROFILE.value)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
