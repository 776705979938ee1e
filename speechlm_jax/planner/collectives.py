"""A compiled program's text -> its collectives: how often each kind runs, and bytes it moves."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from speechlm_jax.planner.program import Instruction, Scope, read_program

Kind = Literal["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]
Network = Literal["ici", "dcn"]
Groups = list[list[int]]  # numbers of devices, by group that communicates

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_LISTED = re.compile(r"\breplica_groups=(\{(?:\{[\d,]*\},?)*\})")
_RESHAPED = re.compile(rf"\breplica_groups=\[\d+,(\d+)\]<=({_IOTA})")
_MESH = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
# a chip's transfer to its host, for another slice
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([^\]]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind over one network, in one run of a program.

    Attributes:
      network: "dcn" if a group holds devices of several slices, else "ici".
      count: number of executions, trips of loops included; several arrays sent as one count once.
      bytes: bytes on a device of the larger side, the gathered result or the reduced operand,
        summed over executions.
      wire_bytes: bytes that a device sends, with ring algorithms: of `bytes` and groups of g
        devices, (g - 1) / g for all-gather, reduce-scatter and all-to-all, twice that for
        all-reduce, all for collective-permute. If a group spans slices, all of them count as DCN's.
    """

    kind: Kind
    network: Network
    count: int
    bytes: int
    wire_bytes: int

    def times(self, number: int) -> "Collective":
        """Returns this collective executed `number` times."""
        figures = (number * figure for figure in (self.count, self.bytes, self.wire_bytes))
        return Collective(self.kind, self.network, *figures)


def collectives(
    program: str,
    *,
    num_devices: int,
    devices_per_slice: int | None = None,
    open_trips: int | None = None,
) -> list[Collective]:
    """Returns the collectives of a program: one entry per kind and network, in the order of both.

    A collective in a loop counts once per trip; of a conditional, the branch that sends most
    counts. A group of one device sends nothing and is left out. Between slices a TPU program sends
    through its host, with a `send` that names the collective that it is a part of. Not found: other
    sends, and collectives of a kind that `Kind` does not name.

    Args:
      program: text of optimised HLO, `compiled.as_text()`, with one replica.
      num_devices: number of devices that run it.
      devices_per_slice: number of consecutive devices, in the program's order, that form a slice,
        joined by ICI; None: all devices.
      open_trips: for how many trips a loop counts that goes on as long as data says; None: there is
        no such loop around a collective.

    Raises:
      ValueError: the text is no program, groups cannot be read, or the trips of a loop around a
        collective cannot be read; the message names the loop or the collective.
    """
    layout = (num_devices, devices_per_slice or num_devices)
    return _sums(_within(read_program(program), *layout, open_trips))


def _within(scope: Scope, devices: int, per_slice: int, open_trips: int | None) -> list[Collective]:
    """Returns every collective of one run of a computation."""

    def inside(of: Scope) -> list[Collective]:
        return _sums(_within(of, devices, per_slice, open_trips))

    found: list[Collective] = []
    for instruction in scope.instructions:
        code = instruction.opcode
        if code == "while":
            # trips are read only where they matter: those of other loops may be unreadable
            if once := inside(scope.body(instruction)):
                trips = _trips(scope, instruction, open_trips)
                found += [one.times(trips) for one in once]
        elif code == "conditional":
            branches = [inside(branch) for branch in scope.branches(instruction)]
            found += max(branches, key=lambda sent: sum(one.wire_bytes for one in sent))
        elif kind := _kind(instruction, scope):
            found += _sent(kind, instruction, devices, per_slice)
        elif _runs(instruction, scope):
            found += inside(scope.called(instruction))
    return found


def _trips(scope: Scope, loop: Instruction, open_trips: int | None) -> int:
    try:
        return scope.trips(loop)
    except ValueError:
        if open_trips is None:
            raise
        return open_trips


def _runs(instruction: Instruction, scope: Scope) -> bool:
    """Returns True if it runs the computation that it names; the end of an async call does not."""
    if not instruction.called or instruction.opcode.endswith(("-done", "-update")):
        return False
    if instruction.opcode != "fusion":
        return True
    rests = [inner.rest for inner in scope.called(instruction).instructions]
    # a fusion that only ends a collective, which another one has started
    ends = any('"AsyncCollectiveDone"' in rest for rest in rests)
    return not ends or any('"AsyncCollectiveStart"' in rest for rest in rests)


def _kind(instruction: Instruction, scope: Scope) -> Kind | None:
    """Returns an instruction's kind of collective; None if it is no collective, or ends one."""
    opcode = instruction.opcode
    if opcode == "send":
        found = _MEGASCALE.search(instruction.rest)
        opcode = found[1].lower().replace("_", "-") if found else ""
    kind = next((kind for kind in get_args(Kind) if opcode in (kind, f"{kind}-start")), None)
    # on TPU: a fusion of an all-reduce and of the slice of it that a device keeps
    sliced = kind == "all-reduce" and scope.name.startswith("all-reduce-scatter")
    return "reduce-scatter" if sliced else kind


def _sent(kind: Kind, instruction: Instruction, devices: int, per_slice: int) -> list[Collective]:
    """Returns one collective, run once, in a list, which is empty if no devices communicate."""
    if instruction.opcode == "send":
        groups = [list(range(0, devices, per_slice))]
    else:
        groups = _groups(instruction, devices)
    size = max(map(len, groups), default=1)
    if size == 1:
        return []
    held = _num_bytes(_result(instruction))
    if instruction.opcode.startswith("reduce-scatter"):
        held *= size
    passes = {"all-reduce": 2, "collective-permute": 0}.get(kind, 1)
    wire = passes * held * (size - 1) // size if passes else held
    crosses = any(len({device // per_slice for device in group}) > 1 for group in groups)
    return [Collective(kind, "dcn" if crosses else "ici", 1, held, wire)]


def _result(instruction: Instruction) -> str:
    """Returns the shape of an instruction's result; a start gives operands, results and more."""
    code, shape = instruction.opcode, instruction.shape.strip()
    if code == "send":
        return shape.partition("]")[0] + "]"
    if not code.endswith("-start") or code == "all-reduce-start" or shape[0] != "(":
        return shape
    depth, commas = 0, []
    for mark in re.finditer(r"[][(){},]", shape):
        depth += (mark[0] in "[({") - (mark[0] in "])}")
        if mark[0] == "," and depth == 1:
            commas.append(mark.start())
    return shape[commas[0] :][: commas[1] - commas[0] if len(commas) > 1 else None]


def _num_bytes(shape: str) -> int:
    """Returns the bytes of an array or of all arrays of a tuple, without padding to tiles."""
    return sum(
        math.ceil(math.prod(_integers(sizes)) * int(bits or 8) / 8)
        for _, bits, sizes in _ARRAY.findall(shape)
    )


def _groups(instruction: Instruction, devices: int) -> Groups:
    """Returns the groups of devices that communicate, from any of XLA's four notations."""
    rest = instruction.rest
    if found := _PAIRS.search(rest):
        pairs = [_integers(pair) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
        return [pair for pair in pairs if pair[0] != pair[1]]
    if found := _LISTED.search(rest):
        listed = [_integers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        return listed or [list(range(devices))]
    if found := _RESHAPED.search(rest):
        return _counted(found[2]).reshape(-1, int(found[1])).tolist()
    if found := _MESH.search(rest):
        return _along(_AXIS.findall(found[1]), found[2], _PART.findall(found[3]))
    raise ValueError(f"the groups of {instruction.name} ({instruction.opcode}) cannot be read")


def _counted(text: str) -> np.ndarray:
    """Parses a device order as `[4,8]T(1,0)`: numbers from 0 in a shape, transposed, flattened."""
    found = re.match(_IOTA, text)
    if not found:
        raise ValueError(f"the order of devices {text} cannot be read")
    sizes = _integers(found[1])
    axes = _integers(found[2]) if found[2] else range(len(sizes))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(*axes).ravel()


def _along(
    axes: list[tuple[str, str]], order: str | None, parts: list[tuple[str, str, str]]
) -> Groups:
    """Returns groups along axes of a mesh, or parts of axes: `'b':(2)4` is 4 of `'b'`, inside 2."""
    sizes, grouped = [], []
    for name, size in axes:
        # an axis is cut where a part begins or ends, the outermost first
        spans = [
            (int(outer or 1), int(outer or 1) * int(part or size))
            for axis, outer, part in parts
            if axis == name
        ]
        cuts = sorted({1, int(size)}.union(*spans))
        for low, high in pairwise(cuts):
            sizes.append(high // low)
            grouped.append(any(first <= low and high <= last for first, last in spans))
    if order is None:
        devices = np.arange(math.prod(sizes))
    else:
        devices = _counted(order) if "[" in order else np.array(_integers(order))
    across = sorted(range(len(sizes)), key=lambda axis: grouped[axis])
    group = math.prod(size for size, inside in zip(sizes, grouped, strict=True) if inside)
    return devices.reshape(sizes).transpose(across).reshape(-1, group).tolist()


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _sums(found: Iterable[Collective]) -> list[Collective]:
    """Sums the collectives of each kind and network that occurs."""
    figures: dict[tuple[Kind, Network], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in found:
        now = (one.count, one.bytes, one.wire_bytes)
        before = figures[one.kind, one.network]
        figures[one.kind, one.network] = [a + b for a, b in zip(before, now, strict=True)]
    return [
        Collective(kind, network, *figures[kind, network])
        for kind in get_args(Kind)
        for network in get_args(Network)
        if (kind, network) in figures
    ]
