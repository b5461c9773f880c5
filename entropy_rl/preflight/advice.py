"""Advice on what to change if a run does not fit."""

from ml_collections import ConfigDict

from entropy_rl.preflight.report import Report
from entropy_rl.runtime.mesh import DATA, FSDP

_GB = 1e9


def advice(c: ConfigDict, report: Report) -> tuple[str, ...]:
    """Changes to the configuration, the most promising first.

    Args:
        c: the whole configuration.
        report: of a run that does not fit.
    """
    found = []
    state = report.parameters + report.optimiser
    if state > report.capacity / 2:
        found.append(
            f"parameters and optimiser take {state / _GB:.1f} GB per chip: raise mesh.fsdp, or take more chips"
        )
    if report.programs["update"]["peak"] > report.capacity:
        found += _for_update(c, report)
    elif report.programs.get("measured update", {"peak": 0})["peak"] > report.capacity:
        found.append("measure.every=0: a measured update holds the parameters from before it too")
    if report.programs.get("warm-up update", {"peak": 0})["peak"] > report.capacity:
        found.append(f"warmup.micro_batches={2 * c.warmup.micro_batches}: fewer sequences per chip at a time")
    if report.programs.get("rollout", {"peak": 0})["peak"] > report.capacity:
        found += _for_rollout(c, report)
    if any(program["peak"] > report.capacity for name, program in report.programs.items() if "evaluation" in name):
        found.append(f"eval.batch={c.eval.batch // 2}: fewer prompts decoded together")
    return tuple(found)


def _for_update(c: ConfigDict, report: Report) -> list[str]:
    found = []
    if c.model.remat != "full":
        found.append("model.remat='full'")
    if report.layout != "packed" or report.rows > report.mesh[DATA] * report.mesh[FSDP]:
        found.append(f"train.micro_batches={2 * c.train.micro_batches}: fewer sequences per chip at a time")
    else:  # each chip has only one row already
        found.append("a mesh.tensor that divides the heads, so that chips share a sequence, or shorter sequences")
    return found


def _for_rollout(c: ConfigDict, report: Report) -> list[str]:
    found = []
    if c.rollout.tensor:
        found.append("a larger rollout.tensor that divides the heads: chips share the weights that sampling reads")
    if report.kv_cache > report.capacity / 4:
        found.append(
            f"the KV cache takes {report.kv_cache / _GB:.1f} GB per chip: "
            f"rollout.slots={report.slots // 2}, or more chips"
        )
    else:
        found.append("fewer rollout.prompts, or a mesh.tensor that divides the key/value heads")
    return found
