"""python -m entropy_rl.preflight --config=configs/entropy_mechanism.py:qwen2_5_7b --topology=v5p:4x4x4 [--json]"""

import json
import os
import sys

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server tells of a TPU that is not here
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody holds a chip, so two may compile side by side

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, file.py or file.py:method.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SHAPE, as v5p:4x4x4 or h100:8.", required=True)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    import jax

    from entropy_rl.preflight import chips, report

    jax.config.update("jax_platforms", "cpu")  # of the tracing; the topology's devices are compiled for alone

    try:
        found = report.preflight(_CONFIG.value, chips.parse(_TOPOLOGY.value))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found, indent=1) if _JSON.value else report.text(found))
    if not found["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
