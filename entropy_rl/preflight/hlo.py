"""Reads the text of a compiled program: its computations, their instructions, and how often each of them runs.

The body of a loop runs as often as the loop's bound, or, if the bound is not a constant, as often as `trips` states for
the `jax.named_scope` in which the loop was written.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from entropy_rl.preflight.trips import Trips, trips_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Instructions that count as one, whatever computation they call.
_WHOLE = frozenset(("fusion", "reduce", "sort", "scatter", "map", "reduce-window", "custom-call", "all-reduce"))

SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")  # dtype, dimensions, layout
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        shape: dtype, dimensions and layout of the result, as text; in brackets if it is a tuple.
        opcode: the operation, such as "fusion".
        operands: the operands' names; of a parameter its number, of a constant its value.
        rest: the text after the operands: attributes and metadata.
        called: names of the computations that it calls.
        root: its result is that of the computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    called: tuple[str, ...]
    root: bool

    @property
    def label(self) -> str:
        """The path of named scopes and operations in the source; the instruction's name if it has none."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.name


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the name of the computation that runs first.
    """

    computations: dict[str, Computation]
    entry: str

    def walk(self, trips: Trips) -> Iterator[tuple[float, Instruction, Computation]]:
        """Everything that runs: (how often, the instruction, its computation). A fusion is one instruction.

        Raises:
            ValueError: If a loop has no constant bound and its scope is not in `trips`.
        """
        yield from self._walk(self.entry, 1.0, trips)

    def _walk(self, name: str, times: float, trips: Trips) -> Iterator[tuple[float, Instruction, Computation]]:
        for instruction in self.computations[name].values():
            yield times, instruction, self.computations[name]
            if instruction.opcode in _WHOLE:
                continue
            inner = times * (self._trips(instruction, trips) if instruction.opcode == "while" else 1)
            for called in instruction.called:
                if called in self.computations and inner:
                    yield from self._walk(called, inner, trips)

    def fused(self, instruction: Instruction) -> Computation:
        """The computation of a fusion; empty for any other instruction."""
        if instruction.opcode != "fusion" or not instruction.called:
            return {}
        return self.computations.get(instruction.called[0], {})

    def _trips(self, loop: Instruction, trips: Trips) -> float:
        bound = self._bound(loop)
        return trips_of(loop.label.removesuffix("/while"), trips) if bound is None else bound

    def _bound(self, loop: Instruction) -> int | None:
        """How often a loop runs if it counts from 0 to a constant, otherwise None."""
        name = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        condition = self.computations[name[1]] if name else {}
        compare, last = self._comparison(condition)
        if compare.opcode != "compare" or "direction=LT" not in compare.rest or last is None:
            return None
        return int(last.operands[0]) if last.opcode == "constant" else None

    def _comparison(self, condition: Computation) -> tuple[Instruction, Instruction | None]:
        """(what a condition returns, the right one of its two operands), looked up through a fusion."""
        end = root_of(condition)
        fused = self.fused(end)
        if not fused:
            return end, condition[end.operands[1]] if len(end.operands) == 2 else None
        compare = root_of(fused)
        operands = [fused[name] for name in compare.operands if name in fused]
        if len(operands) != 2:
            return compare, None
        last = operands[1]
        return compare, condition[end.operands[int(last.operands[0])]] if last.opcode == "parameter" else last


def root_of(computation: Computation) -> Instruction:
    """The instruction whose result is that of the computation."""
    (root,) = (instruction for instruction in computation.values() if instruction.root)
    return root


def parameters(computation: Computation) -> dict[int, str]:
    """The names of a computation's parameters, by their numbers."""
    return {int(i.operands[0]): i.name for i in computation.values() if i.opcode == "parameter"}


def read(text: str) -> Program:
    """The program whose text `compiled.as_text()` returns.

    Raises:
        ValueError: If a line cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line == "}":  # inside a computation, lines of a kernel's own text may look like the head of another
            current = None
        elif current is None and (head := _HEAD.match(line)):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    return Program(computations, entry)


def _instruction(name: str, body: str, root: bool) -> Instruction:
    end = _closing(body) + 1 if body.startswith("(") else body.index(" ")
    opcode = _OPCODE.match(body, end)
    if not opcode:
        raise ValueError(f"not an instruction of a compiled program: {name} = {body[:200]}")
    close = _closing(body, opcode.end() - 1)
    given, rest = body[opcode.end() : close], body[close + 1 :]
    listed = [n.strip().lstrip("%") for group in _LISTED.findall(rest) for n in group.split(",") if n.strip()]
    operands = (given,) if opcode[1] in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", given))
    return Instruction(name, body[:end], opcode[1], operands, rest, tuple(_CALLED.findall(rest) + listed), root)


def _closing(text: str, start: int = 0) -> int:
    """The position of the bracket that closes the first one opened at or after `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"no closing bracket in {text[start : start + 80]!r}")


def members(shape: str) -> list[str]:
    """The members of a tuple, one level down; the shape itself if it is not a tuple.

    >>> members("(f32[2]{0}, (s32[], pred[3]{0}))")
    ['f32[2]{0}', ' (s32[], pred[3]{0})']
    """
    if not shape.startswith("("):
        return [shape]
    found, depth, start = [], 0, 1
    for at, char in enumerate(shape):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or at == len(shape) - 1:
            found.append(shape[start:at])
            start = at + 1
    return found


def size(shape: str, in_memory: bool = False) -> float:
    """Bytes of a shape, or of all members of a tuple.

    >>> size("(bf16[6,128]{1,0}, f32[3]{0:S(1)})"), size("(bf16[6,128]{1,0}, f32[3]{0:S(1)})", in_memory=True)
    (1548.0, 1536.0)

    Args:
        shape: as in the program's text.
        in_memory: leave out the members in the chip's scratch memory, whose layout has an S(n).
    """
    total = 0.0
    for dtype, dims, layout in SHAPE.findall(shape):
        if not (in_memory and "S(" in layout):
            bits = re.search(r"\d+", dtype)
            width = _BYTES[dtype] if dtype in _BYTES else int(bits[0]) / 8 if bits else 4
            total += width * math.prod(int(d) for d in dims.split(",") if d)
    return total
