"""A compiled program's text -> the large arrays that it copies or rearranges in memory."""

import dataclasses
import math
import re
from collections import Counter

from speechlm_jax.planner.program import Computation, Instruction, read_program

LEAST_BYTES = 2**20  # smaller ones cost nothing that matters
NEARER = "S(1)"  # memory on the core itself: what goes there is read, not copied
COPIES = ("copy", "transpose")

_ARRAY = re.compile(r"([a-z]+)(\d+)\w*\[([\d,]+)\]")


@dataclasses.dataclass(frozen=True)
class Copy:
    """An array that a program copies or transposes.

    Attributes:
      shape: on each device, as in `bf16[2,32,1024,128]`.
      size: number of its elements.
      count: places in the program's text that do so; one in a loop counts once.
    """

    shape: str
    size: int
    count: int


def copies(program: str) -> list[Copy]:
    """Returns the copies of arrays of 1 MiB or more, between places of a device's main memory.

    Args:
      program: text of optimised HLO, `compiled.as_text()`.

    Raises:
      ValueError: the text is no program.
    """
    computations = read_program(program).program
    lines = [line for each in computations.values() for line in each.instructions.values()]
    fused = {line.called for line in lines if line.opcode == "fusion"}
    found: Counter[str] = Counter()
    for name, computation in computations.items():
        if name not in fused:  # what is inside a fusion has no memory of its own
            own = computation.instructions.values()
            found.update(_copied(line) for line in own if _copies(line, computations))
    sizes = {shape: _elements(shape) for shape in found}
    return [
        Copy(shape, size, found[shape])
        for shape, (size, bits) in sizes.items()
        if size * bits >= 8 * LEAST_BYTES
    ]


def _copies(line: Instruction, computations: dict[str, Computation]) -> bool:
    """Returns True if the result is a copy that lies in main memory."""
    if NEARER in line.shape:
        return False
    if line.opcode == "fusion" and line.called is not None:
        inside = computations[line.called]
        return inside.instructions[inside.root].opcode in COPIES
    return line.opcode in COPIES


def _copied(line: Instruction) -> str:
    found = _ARRAY.search(line.shape)
    return found[0] if found else ""


def _elements(shape: str) -> tuple[int, int]:
    """Returns the number of elements of an array, and the bits of one; zeros if it is none."""
    found = _ARRAY.fullmatch(shape)
    return (math.prod(map(int, found[3].split(","))), int(found[2])) if found else (0, 0)
