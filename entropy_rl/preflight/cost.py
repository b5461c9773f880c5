"""An estimate of the time that a compiled program takes, from its FLOPs, its memory traffic and its collectives."""

from typing import Any, NamedTuple, Self

from jax.extend import core
from jax.sharding import Mesh

from entropy_rl.preflight import collectives, flops, hlo, traffic
from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.trips import Trips


class Seconds(NamedTuple):
    """A lower bound on a program's time per chip, by part.

    Attributes:
        compute: all products at the chip's peak.
        memory: all bytes at the memory's bandwidth.
        wires: the collectives during which the chip computes.
        exposed: the collectives that the chip waits for.
    """

    compute: float
    memory: float
    wires: float
    exposed: float

    @property
    def step(self) -> float:
        """The whole: max(compute, memory, wires) + exposed."""
        return max(self.compute, self.memory, self.wires) + self.exposed

    def to_json(self) -> dict[str, float]:
        """The fields and the whole, by name."""
        return self._asdict() | {"step": self.step}


class Exchange(NamedTuple):
    """All collectives of one kind along the same mesh axes.

    Attributes:
        times: how many there are.
        sent: bytes that leave one chip.
        seconds: on the wires.
    """

    times: float = 0.0
    sent: float = 0.0
    seconds: float = 0.0


class Cost(NamedTuple):
    """The work of a program per chip.

    Attributes:
        flops: of its products.
        moved: bytes read from and written to memory.
        seconds: the time of each part.
        exchanges: its collectives, by kind and axes, such as "all-gather fsdp".
    """

    flops: float
    moved: float
    seconds: Seconds
    exchanges: dict[str, Exchange]

    def per_step(self, steps: int) -> Self:
        """The share of one step, if the program makes several alike."""
        return type(self)(
            self.flops / steps,
            self.moved / steps,
            Seconds(*(part / steps for part in self.seconds)),
            {what: Exchange(*(total / steps for total in exchange)) for what, exchange in self.exchanges.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as a report has them, the largest exchanges first."""
        rows = [
            {"what": what, "times": exchange.times, "bytes": exchange.sent, "seconds": exchange.seconds}
            for what, exchange in self.exchanges.items()
            if exchange.times
        ]
        return {
            "flops": self.flops,
            "bytes": self.moved,
            "time": self.seconds.to_json(),
            "collective_bytes": sum(row["bytes"] for row in rows),
            "collectives": sorted(rows, key=lambda row: -row["bytes"]),
        }


def cost_of(program: hlo.Program, jaxpr: core.Jaxpr, trips: Trips, mesh: Mesh, topology: Topology) -> Cost:
    """The cost of one run of a program.

    Args:
        program: as compiled, which has the memory traffic and the collectives.
        jaxpr: the same as traced, which has the products.
        trips: how often the loops run whose length is data.
        mesh: the mesh it was compiled for.
        topology: the chips of the mesh.

    Raises:
        ValueError: If a loop's length is data and its scope is not in `trips`.
    """
    chip = topology.chip
    done = flops.count(jaxpr, trips) / topology.size
    moved = traffic.bytes_moved(program, trips)
    exchanges: dict[str, Exchange] = {}
    wires = exposed = 0.0
    for collective in collectives.find(program, trips):
        seconds = collective.times * collectives.seconds(collective, mesh, topology)
        if collective.overlapped:
            wires += seconds
        else:
            exposed += seconds
        what = f"{collective.kind} {collectives.axes(collective, mesh)}"
        times, sent, total = exchanges.get(what, Exchange())
        sent += collective.times * collective.sent()
        exchanges[what] = Exchange(times + collective.times, sent, total + seconds)
    return Cost(done, moved, Seconds(done / chip.flops, moved / chip.bandwidth, wires, exposed), exchanges)
