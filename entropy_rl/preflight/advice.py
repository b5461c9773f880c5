"""What to change where a run does not fit."""

from typing import Any

from ml_collections import ConfigDict

_GB = 1e9


def advice(c: ConfigDict, report: dict[str, Any]) -> list[str]:
    """What to change, the likeliest first."""
    update, rollout = (report["programs"][k]["peak"] > report["capacity"] for k in ("update", "rollout"))
    state = report["parameters"] + report["optimiser"]
    said = []
    if state > report["capacity"] / 2:
        said.append(f"parameters and optimiser take {state / _GB:.1f} GB a chip: raise mesh.fsdp, or take more chips")
    if update and c.model.remat != "full":
        said.append("model.remat='full'")
    shards = report["mesh"]["data"] * report["mesh"]["fsdp"]
    if update and (report["layout"] != "packed" or report["rows"] > shards):
        said.append(f"train.micro_batches={2 * c.train.micro_batches}: fewer sequences a chip at a time")
    elif update:  # a row a chip already
        said.append("a mesh.tensor that divides the heads, so that chips share a sequence, or shorter ones")
    if rollout and c.rollout.tensor:
        said.append("a larger rollout.tensor that divides the heads: chips share the weights that sampling reads")
    if rollout and report["kv_cache"] > report["capacity"] / 4:
        said.append(
            f"the KV cache takes {report['kv_cache'] / _GB:.1f} GB a chip: "
            f"rollout.slots={report['slots'] // 2}, or more chips"
        )
    elif rollout:
        said.append("fewer rollout.prompts, or a mesh.tensor that divides the key/value heads")
    return said
