"""The report of preflight: the memory that a run needs on one chip, and estimates of its time."""

from typing import Any, NamedTuple, Self

from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.programs import Run
from entropy_rl.preflight.sizes import useful_flops


class Report(NamedTuple):
    """A run on a topology. All figures are those of one chip.

    Attributes:
        topology: such as "v5p:4x4x4".
        model: `model.source`.
        mesh: sizes of the mesh's axes in training.
        sampling_mesh: sizes of the mesh's axes in sampling.
        layout: of an update's sequences: "group", "packed" or "auto".
        remat: `model.remat`.
        sequences_per_update: on all chips together.
        length: positions of the longest sequence.
        pieces: of an update, computed one after another.
        rows: packed rows of one piece, on all chips together.
        slots: responses made at the same time, on all chips together.
        capacity: bytes of memory.
        parameters: bytes.
        optimiser: bytes of its state.
        kv_cache: bytes at full length, with the prompts' keys.
        programs: "update", "score" if its batch is scored before it, "measured update" with `measure.every`,
            "warm-up update" if there is a warm-up, "rollout", and "evaluation, greedy" and "evaluation, sampled" if
            their batches are larger than a rollout's. Each has its `peak` in bytes and either the compiler's `error`
            or, if they are known, the bytes of its arguments, activations, resident arrays and largest buffers, and its
            cost (`cost.py: Cost.to_json`). A rollout and an evaluation have the memory of their worst phase and the
            cost of each phase.
        useful_flops: of an update: what it needs, without recomputation and without the pass that scores its batch.
        update_seconds: estimated time of an update and of scoring its batch; None if one of them does not compile.
        mfu: the share of the chip's peak that the useful FLOPs take in that time; None likewise.
        peak: bytes, of the largest program.
        fits: the peak is at most the capacity.
        by: a note on how the figures were made; None: by compiling.
        advice: what to change if it does not fit, the most promising first.
    """

    topology: str
    model: str
    mesh: dict[str, int]
    sampling_mesh: dict[str, int]
    layout: str
    remat: str
    sequences_per_update: int
    length: int
    pieces: int
    rows: int
    slots: int
    capacity: float
    parameters: float
    optimiser: float
    kv_cache: float
    programs: dict[str, dict[str, Any]]
    useful_flops: float
    update_seconds: float | None
    mfu: float | None
    peak: float
    fits: bool
    by: str | None = None
    advice: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        run: Run,
        topology: Topology,
        *,
        mesh: dict[str, int],
        sampling_mesh: dict[str, int],
        parameters: float,
        optimiser: float,
        kv_cache: float,
        programs: dict[str, dict[str, Any]],
        update_seconds: float | None,
        by: str | None = None,
    ) -> Self:
        """The report without advice: the fields that follow from the run and its programs are filled in."""
        c, plan, chip = run.config, run.engine.plan, topology.chip
        useful = useful_flops(run) / topology.size
        peak = max(program["peak"] for program in programs.values())
        return cls(
            topology=str(topology),
            model=c.model.source,
            mesh=mesh,
            sampling_mesh=sampling_mesh,
            layout=plan.layout,
            remat=c.model.remat,
            sequences_per_update=run.sequences,
            length=c.data.max_prompt_len + c.rollout.max_tokens,
            pieces=run.pieces,
            rows=plan.rows,
            slots=run.slots,
            capacity=chip.memory,
            parameters=parameters,
            optimiser=optimiser,
            kv_cache=kv_cache,
            programs=programs,
            useful_flops=useful,
            update_seconds=update_seconds,
            mfu=None if update_seconds is None else useful / (update_seconds * chip.flops),
            peak=peak,
            fits=peak <= chip.memory,
            by=by,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields by name, without those that are None."""
        return {key: value for key, value in self._asdict().items() if value is not None}
