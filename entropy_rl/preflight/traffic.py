"""The bytes that a compiled program reads from and writes to the chip's memory, and its largest buffers."""

from typing import NamedTuple

from entropy_rl.preflight import hlo
from entropy_rl.preflight.hlo import Computation, Instruction, Program
from entropy_rl.preflight.trips import Trips

_SLICES = ("dynamic-slice", "gather", "slice")
# Instructions that move nothing themselves: what they name, group or call is counted elsewhere.
_STILL = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
    + ("partition-id", "iota", "opt-barrier", "async-start", "async-update")
)


def bytes_moved(program: Program, trips: Trips) -> float:
    """Bytes read and written in one run of the program. If an operand is only sliced, only the slices count.

    Raises:
        ValueError: If a loop has no constant bound and its scope is not in `trips`.
    """
    total = 0.0
    for times, instruction, computation in program.walk(trips):
        if instruction.opcode not in _STILL and not instruction.opcode.endswith("-done"):
            total += times * bytes_of(program, instruction, computation)
    return total


def bytes_of(program: Program, instruction: Instruction, computation: Computation) -> float:
    """Bytes that one instruction of the computation reads and writes, each time that it runs."""
    if instruction.opcode in _SLICES:
        return 2 * hlo.size(instruction.shape, in_memory=True)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _operand(instruction.operands[1], computation)
    if fused := program.fused(instruction):
        return _Fusion(program, instruction, fused).bytes_moved(computation)
    read = sum(_operand(name, computation) for name in instruction.operands)
    return read + hlo.size(instruction.shape, in_memory=True)


def _operand(name: str, computation: Computation) -> float:
    """Bytes in memory of an operand; 0 if it is no instruction of the computation."""
    return hlo.size(computation[name].shape, in_memory=True) if name in computation else 0.0


class _Use(NamedTuple):
    """A fusion's use of one operand.

    Attributes:
        read: bytes read.
        written: bytes added to those of the result; below 0 if less than the result is written.
    """

    read: float
    written: float = 0.0


class _Fusion(NamedTuple):
    """A fusion and the computation that it calls."""

    program: Program
    instruction: Instruction
    fused: Computation

    def bytes_moved(self, computation: Computation) -> float:
        """Bytes read and written by this fusion, an instruction of `computation`."""
        parameters = hlo.parameters(self.fused)
        written = hlo.size(self.instruction.shape, in_memory=True) - self._handed_through()
        read = 0.0
        for number, name in enumerate(self.instruction.operands):
            use = self._use(parameters.get(number), _operand(name, computation))
            read += use.read
            written = max(0.0, written + use.written)
        return read + written

    def _use(self, parameter: str | None, whole: float) -> _Use:
        """The use of an operand of `whole` bytes, which is this parameter of the fused computation (None: unused)."""
        users = _users(parameter, self.fused)
        if self._is_buffer_of_a_collective(users):
            return _Use(0.0)
        sliced = _sliced(self.program, parameter, self.fused)
        if sliced is not None:
            return _Use(min(whole, sliced))
        if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == parameter for user in users):
            return self._updated_in_place(users, whole)
        return _Use(whole)

    def _updated_in_place(self, users: list[Instruction], whole: float) -> _Use:
        """Only the updates are written, although the result is as large as the operand."""
        updates = [user.operands[1] for user in users if user.operands[1] in self.fused]
        return _Use(0.0, sum(hlo.size(self.fused[name].shape) for name in updates) - whole)

    def _collectives(self) -> set[str]:
        """The collectives that run beside this fusion, which only hands their buffers through."""
        if "async_collective" not in self.instruction.rest:
            return set()
        return {i.name for i in self.fused.values() if i.opcode in hlo.COLLECTIVES}

    def _is_buffer_of_a_collective(self, users: list[Instruction]) -> bool:
        collectives = self._collectives()
        return bool(collectives) and all(user.root or user.name in collectives for user in users)

    def _handed_through(self) -> float:
        """Bytes of the result that are buffers of the collectives beside the fusion."""
        collectives = self._collectives()
        if not collectives:
            return 0.0
        root = hlo.root_of(self.fused)
        if root.opcode != "tuple":
            return 0.0
        through = collectives | set(hlo.parameters(self.fused).values())
        results = zip(root.operands, hlo.members(self.instruction.shape), strict=True)
        return sum(hlo.size(member, in_memory=True) for name, member in results if name in through)


def _users(name: str | None, computation: Computation) -> list[Instruction]:
    return [instruction for instruction in computation.values() if name in instruction.operands]


def _sliced(program: Program, name: str | None, computation: Computation) -> float | None:
    """Bytes read of a parameter that is only sliced, also by fusions within this one; None: it is read whole."""
    users = _users(name, computation)
    if not users:
        return None
    total = 0.0
    for user in users:
        part = hlo.size(user.shape) if user.opcode in _SLICES else _sliced_within(program, name, user)
        if part is None:
            return None
        total += part
    return total


def _sliced_within(program: Program, name: str | None, user: Instruction) -> float | None:
    """The same for one user that is no slice: a nested fusion may contain slices."""
    if user.opcode != "fusion":
        return None
    nested = program.fused(user)
    parameters = hlo.parameters(nested)
    total = 0.0
    for number, operand in enumerate(user.operands):
        if operand == name:
            part = _sliced(program, parameters.get(number), nested)
            if part is None:
                return None
            total += part
    return total


class Buffer(NamedTuple):
    """A result in the chip's memory.

    Attributes:
        size: bytes.
        shape: dtype and dimensions.
        label: the source's name for it.
    """

    size: float
    shape: str
    label: str


def largest(program: Program, count: int = 6) -> list[Buffer]:
    """The largest results, those of one shape and label once, the largest first."""
    found: dict[tuple[str, str], float] = {}
    for _, instruction, _ in program.walk(None):
        if instruction.opcode in _STILL or instruction.opcode.endswith(("-done", "-start")):
            continue
        for member in hlo.members(instruction.shape):
            if shape := hlo.SHAPE.match(member.strip()):
                found[f"{shape[1]}[{shape[2]}]", instruction.label] = hlo.size(member, in_memory=True)
    buffers = [Buffer(size, shape, label) for (shape, label), size in found.items()]
    return sorted(buffers, key=lambda buffer: -buffer.size)[:count]
