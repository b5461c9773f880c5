"""What a run would need on a topology that is not present.

python -m entropy_rl.preflight --config=configs/entropy_mechanism.py:qwen2_5_7b --topology=v5p:4x4x4 [--json]

With --suggest it also changes the pieces of an update, remat, the slots, and at last LoRA, until the run fits.
"""

import functools
import json
import os
import sys

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server, since there is no TPU here
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no process holds a chip, so two may compile side by side

import jax  # noqa: E402 (libtpu reads the variables above)
from absl import app, flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from entropy_rl.config.command_line import ConfigFlag  # noqa: E402
from entropy_rl.preflight import chips  # noqa: E402
from entropy_rl.preflight.advice import advice  # noqa: E402
from entropy_rl.preflight.compiled import compile_for  # noqa: E402
from entropy_rl.preflight.estimate import estimate  # noqa: E402
from entropy_rl.preflight.report import Report  # noqa: E402
from entropy_rl.preflight.suggest import suggest  # noqa: E402
from entropy_rl.preflight.text import text  # noqa: E402

_CONFIG = ConfigFlag("The configuration, file.py or file.py:ARGUMENT.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5p:4x4x4 or h100:8.", required=True)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_SUGGEST = flags.DEFINE_bool("suggest", False, "Try smaller settings until the run fits, and print them.")
_SUGGEST_LORA = flags.DEFINE_bool("suggest_lora", True, "With --suggest: LoRA may be one of them.")


def preflight(c: ConfigDict, topology: chips.Topology, first_failure: bool = False) -> Report:
    """The report of a run: for TPUs its programs are compiled, for GPUs it is made by arithmetic.

    Args:
        c: the configuration.
        topology: the chips.
        first_failure: as in `compile_for`.

    Raises:
        ValueError: If a run would refuse the configuration, or if libtpu is missing or made for another JAX.
    """
    report = compile_for(c, topology, first_failure) if topology.is_tpu else estimate(c, topology)
    return report if report.fits else report._replace(advice=advice(c, report))


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    jax.config.update(
        "jax_platforms", "cpu"
    )  # programs are traced on a CPU; the topology's devices only serve compiling
    try:
        c, topology, settings = _CONFIG.load(), chips.parse(_TOPOLOGY.value), None
        if _SUGGEST.value:
            found = suggest(c, topology, functools.partial(preflight, first_failure=True), _SUGGEST_LORA.value)
            report, settings = found.report, found.settings
        else:
            report = preflight(c, topology)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if _JSON.value:
        print(json.dumps(report.to_json() | ({} if settings is None else {"settings": settings}), indent=1))
    else:
        print(text(report))
        if settings is not None:
            print(f"tried last, after {found.trials} reports: {found.flags or 'the configuration as it is'}")
    if not report.fits:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=_CONFIG.parse)
