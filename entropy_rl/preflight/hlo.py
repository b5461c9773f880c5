"""A compiled program's text, read: what runs, how often, the memory that it moves, its largest buffers.

Every instruction counts as often as it runs: a loop's body as often as the loop's bound, or, if that is not a constant,
as often as `trips` has it for the `jax.named_scope` that the loop was written in.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from entropy_rl.preflight.trips import Trips, trips_of

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_SLICES = ("dynamic-slice", "gather", "slice")
_ONE = frozenset(("fusion", "reduce", "sort", "scatter", "map", "reduce-window", "custom-call", "all-reduce"))
_STILL = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
    + ("partition-id", "iota", "opt-barrier", "async-start", "async-update")
)


class Instruction(NamedTuple):
    """One line.

    Attributes:
        name, opcode, root: of it.
        type: its result's, as text.
        operands: their names; a parameter's number, a constant's value.
        rest: what follows the operands.
        called: the computations that it calls.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    called: tuple[str, ...]
    root: bool

    @property
    def label(self) -> str:
        """What the source called it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.name


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """Computations by name, and the entry's name."""

    computations: dict[str, Computation]
    entry: str

    def walk(self, trips: Trips) -> Iterator[tuple[float, Instruction, Computation]]:
        """(how often, instruction, its computation) of everything that runs, a fusion as one instruction.

        Raises:
            ValueError: a loop whose bound is no constant and which has no name in `trips`.
        """

        def visit(name: str, times: float):
            for i in self.computations[name].values():
                yield times, i, self.computations[name]
                if i.opcode in _ONE:
                    continue
                inner = times
                if i.opcode == "while":
                    bound = self._bound(i)
                    inner *= trips_of(i.label.removesuffix("/while"), trips) if bound is None else bound
                for called in i.called:
                    if called in self.computations and inner:
                        yield from visit(called, inner)

        return visit(self.entry, 1.0)

    def inside(self, i: Instruction) -> Computation:
        """What a fusion holds; nothing for anything else."""
        return self.computations.get(i.called[0], {}) if i.opcode == "fusion" and i.called else {}

    def _bound(self, loop: Instruction) -> int | None:
        """How often a loop runs that counts from 0 to a constant."""
        name = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        condition = self.computations[name[1]] if name else {}
        (end,) = (i for i in condition.values() if i.root)
        compare, names = end, list(end.operands)
        if inner := self.inside(end):
            (compare,) = (i for i in inner.values() if i.root)
            own = [inner[n] for n in compare.operands if n in inner]
            names = [end.operands[int(i.operands[0])] if i.opcode == "parameter" else i.name for i in own]
            condition = condition | inner
        if compare.opcode != "compare" or "direction=LT" not in compare.rest or len(names) != 2:
            return None
        last = condition[names[1]]
        return int(last.operands[0]) if last.opcode == "constant" else None

    def traffic(self, trips: Trips) -> float:
        """Bytes read from and written to the chip's memory. Of what is only sliced, the slices count."""
        total = 0.0
        for times, i, around in self.walk(trips):
            if i.opcode not in _STILL and not i.opcode.endswith("-done"):
                total += times * self._moved(i, around)
        return total

    def _moved(self, i: Instruction, around: Computation) -> float:
        operand = lambda name: size(around[name].type, True) if name in around else 0.0
        if i.opcode in _SLICES:
            return 2 * size(i.type, True)
        if i.opcode == "dynamic-update-slice":
            return 2 * operand(i.operands[1])
        inner = self.inside(i)
        numbered = {int(j.operands[0]): j.name for j in inner.values() if j.opcode == "parameter"}
        written, read = size(i.type, True), 0.0
        # A collective that goes on beside a fusion is handed through it, and counts where it starts.
        beside = {j.name for j in inner.values() if j.opcode in COLLECTIVES} if "async_collective" in i.rest else set()
        for j in inner.values() if beside else ():
            if j.root and j.opcode == "tuple":
                through = beside | set(numbered.values())
                out = zip(j.operands, parts(i.type), strict=True)
                written -= sum(size(part, True) for name, part in out if name in through)
        for n, name in enumerate(i.operands):
            whole, own = operand(name), numbered.get(n)
            users = [j for j in inner.values() if own in j.operands]
            if beside and all(j.root or j.name in beside for j in users):
                continue
            sliced = self._sliced(own, inner) if own else None
            if sliced is not None:
                whole = min(whole, sliced)
            elif users and all(j.opcode == "dynamic-update-slice" and j.operands[0] == own for j in users):
                update = sum(size(inner[j.operands[1]].type) for j in users if j.operands[1] in inner)
                written, whole = max(0.0, written - whole + update), 0.0
            read += whole
        return read + written

    def _sliced(self, name: str, inner: Computation) -> float | None:
        """Bytes of what is read of a parameter that is only sliced, in fusions within too; None: it is read whole."""
        total = 0.0
        users = [j for j in inner.values() if name in j.operands]
        for j in users:
            if j.opcode in _SLICES:
                total += size(j.type)
                continue
            if j.opcode != "fusion":
                return None
            nested = self.inside(j)
            numbered = {int(k.operands[0]): k.name for k in nested.values() if k.opcode == "parameter"}
            for n, operand in enumerate(j.operands):
                if operand == name:
                    part = self._sliced(numbered[n], nested) if n in numbered else None
                    if part is None:
                        return None
                    total += part
        return total if users else None

    def largest(self, n: int = 6) -> list[tuple[float, str, str]]:
        """(bytes, type, name) of the n largest results in the chip's memory, those of one name once."""
        found: dict[tuple[str, str], float] = {}
        for _, i, _ in self.walk(None):
            if i.opcode in _STILL or i.opcode.endswith(("-done", "-start")):
                continue
            for part in parts(i.type):
                if shape := _SHAPE.match(part.strip()):
                    found[f"{shape[1]}[{shape[2]}]", i.label] = size(part, True)
        top = sorted(found.items(), key=lambda kv: -kv[1])[:n]
        return [(b, shape, label) for (shape, label), b in top]


def read(text: str) -> Program:
    """The program that `compiled.as_text()` shows."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line == "}":  # lines of a kernel's own text may begin so
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
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"no closing bracket in {text[start : start + 80]!r}")


def parts(text: str) -> list[str]:
    """The members of a tuple type, one level down; the type itself where it is no tuple."""
    if not text.startswith("("):
        return [text]
    found, depth, start = [], 0, 1
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or at == len(text) - 1:
            found.append(text[start:at])
            start = at + 1
    return found


def size(text: str, in_memory: bool = False) -> float:
    """Bytes of a type, or of all of a tuple; `in_memory`: but for what is kept in the chip's scratch memory, S(n)."""
    total = 0.0
    for dtype, dims, layout in _SHAPE.findall(text):
        if not (in_memory and "S(" in layout):
            bits = re.search(r"\d+", dtype)
            width = _BYTES[dtype] if dtype in _BYTES else int(bits[0]) / 8 if bits else 4
            total += width * math.prod(int(d) for d in dims.split(",") if d)
    return total
