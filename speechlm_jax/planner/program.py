"""A compiled program's text -> its computations, and the trips of its loops.

The text is optimised HLO as TPU and CPU compilers print it (`compiled.as_text()`). On CPU, XLA
notes the trips of a loop. On TPU, the few integers that the loop's condition reads are followed
from their first values, trip by trip: a loop that multiplies matrices window by window counts by
twos.
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Iterable
from functools import cached_property, partial

MOST_TRIPS = 100_000  # a loop that has not ended by then is misread

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) =(?= )")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")  # a layout's `T(8,128)` follows no space
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:(?:true|false)_computation=|branch_computations=\{)([^=}]*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

_SAME = {"bitcast", "convert", "copy", "copy-done", "copy-start", "optimization-barrier", "reshape"}
_ARITHMETIC = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}
_DIRECTIONS = {name: getattr(operator, name.lower()) for name in "LT LE GT GE NE EQ".split()}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program: `%name = shape opcode(operands), attributes`.

    Attributes:
      rest: text after the opening bracket: operands, `)`, attributes.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @cached_property
    def inner(self) -> str:
        """Text between the brackets."""
        depth = 1
        for bracket in re.finditer(r"[()]", self.rest):
            depth += 1 if bracket[0] == "(" else -1
            if not depth:
                return self.rest[: bracket.start()]
        raise ValueError(f"{self.name}: the operands do not end")

    @cached_property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return _NAME.findall(self.inner)

    @cached_property
    def called(self) -> str | None:
        """Name of the computation that it runs once, or applies to elements; None if none."""
        found = _CALLED.search(self.rest)
        return found[1] if found else None

    @cached_property
    def branches(self) -> list[str]:
        """Names of the computations of which a conditional runs one."""
        return [name for names in _BRANCHES.findall(self.rest) for name in _NAME.findall(names)]

    def attribute(self, pattern: str) -> str:
        """Returns the match of a pattern's first group; ValueError if there is none."""
        found = re.search(pattern, self.rest)
        if not found:
            raise ValueError(f"{self.name} ({self.opcode}) has no {pattern}")
        return found[1]


@dataclasses.dataclass
class Computation:
    """Instructions by name, in the order of the text, and the name of the one with the result."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""


# (number of a parameter, element of its tuple; None: it is no tuple) -> its value
Given = Callable[[int, int | None], int]


def _unknown(number: int, element: int | None) -> int:
    raise ValueError(f"element {element} of parameter {number} is not known")


@dataclasses.dataclass(frozen=True)
class Scope:
    """A computation at the place where it runs, with the known values of its parameters.

    Attributes:
      program: all computations, by name.
      name: name of the computation.
      given: returns the integers among its parameters; raises ValueError for all others.
    """

    program: dict[str, Computation]
    name: str
    given: Given = _unknown

    @property
    def instructions(self) -> Iterable[Instruction]:
        """Instructions of the computation, in the order of the text."""
        return self.program[self.name].instructions.values()

    def called(self, caller: Instruction) -> "Scope":
        """Returns the scope that a call or fusion runs; ValueError if it runs nothing."""
        if caller.called is None:
            raise ValueError(f"{caller.name} calls nothing")

        def given(number: int, element: int | None) -> int:
            return self.value(caller.operands[number], element)

        return Scope(self.program, caller.called, given)

    def branches(self, conditional: Instruction) -> list["Scope"]:
        """Returns the scopes of which a conditional runs one."""
        # the first operand chooses; each other one is passed to a branch
        pairs = zip(conditional.branches, conditional.operands[1:], strict=True)
        return [
            Scope(self.program, name, partial(self._handed, operand)) for name, operand in pairs
        ]

    def _handed(self, operand: str, _: int, element: int | None) -> int:
        return self.value(operand, element)

    def body(self, loop: Instruction) -> "Scope":
        """Returns the scope that a loop runs each trip; it knows values that no trip changes."""
        body = self._of_loop(loop, "body", _unknown)

        def given(number: int, element: int | None) -> int:
            probe = 2**31 + 1  # no program holds it: it comes out only if it is passed on
            kept = dataclasses.replace(body, given=lambda _, index: probe + (index or 0))
            if element is None or kept.value(body._root, element) != probe + element:
                raise ValueError(f"element {element} of {loop.name} changes")
            return self.value(loop.operands[0], element)

        return dataclasses.replace(body, given=given)

    def trips(self, loop: Instruction) -> int:
        """Returns how often a loop of this computation runs its body.

        Raises:
          ValueError: it depends on more than integers in the program; the message names the loop.
        """
        known = _TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        try:
            return self._followed(loop)
        except (ValueError, LookupError) as error:
            raise ValueError(f"the trips of {loop.name} cannot be read: {error}") from error

    def value(self, name: str, element: int | None = None) -> int:
        """Returns the integer that an instruction gives, or an element of its tuple.

        Raises:
          ValueError: it depends on more than known integers.
        """
        instruction = self.program[self.name].instructions[name]
        code, operands = instruction.opcode, instruction.operands
        if code == "parameter":
            return self.given(int(instruction.inner), element)
        if code in _SAME:
            return self.value(operands[0], element)
        if code == "tuple" and element is not None:
            return self.value(operands[element])
        if code in ("call", "fusion"):
            inside = self.called(instruction)
            return inside.value(inside._root, element)
        if element is not None:
            raise ValueError(f"{name} ({code}) is not followed")
        return self._integer(instruction)

    def _integer(self, instruction: Instruction) -> int:
        code, operands = instruction.opcode, instruction.operands
        if code == "constant":
            return int(instruction.inner)
        if code == "get-tuple-element":
            return self.value(operands[0], int(instruction.attribute(r"\), index=(\d+)")))
        function = _ARITHMETIC.get(code)
        if code == "compare":
            function = _DIRECTIONS[instruction.attribute(r"\bdirection=(\w+)")]
        if function is None:
            raise ValueError(f"{instruction.name} ({code}) is not followed")
        return int(function(*(self.value(operand) for operand in operands)))

    @property
    def _root(self) -> str:
        return self.program[self.name].root

    def _of_loop(self, loop: Instruction, part: str, given: Given) -> "Scope":
        return Scope(self.program, loop.attribute(rf"\b{part}=%([\w.\-]+)"), given)

    def _followed(self, loop: Instruction) -> int:
        state: dict[int, int] = {}  # elements that the condition reads, and their inputs

        def first(_: int, element: int | None) -> int:
            if element is None:
                raise ValueError("its state is no tuple")
            return state.setdefault(element, self.value(loop.operands[0], element))

        condition = self._of_loop(loop, "condition", first)
        body = self._of_loop(loop, "body", first)
        condition.value(condition._root)
        read: set[int] = set()
        while unread := state.keys() - read:
            for element in unread:
                body.value(body._root, element)
            read |= unread
        for trips in range(MOST_TRIPS):
            given = _elements(state)
            if not dataclasses.replace(condition, given=given).value(condition._root):
                return trips
            after = dataclasses.replace(body, given=given)
            before, state = state, {each: after.value(body._root, each) for each in read}
            if state == before:
                raise ValueError("it never ends")
        raise ValueError(f"it has not ended after {MOST_TRIPS} trips")


def _elements(state: dict[int, int]) -> Given:
    return lambda _, element: state[-1 if element is None else element]


def read_program(text: str) -> Scope:
    """Parses a program's text and returns its entry computation.

    Raises:
      ValueError: the text is no program.
    """
    program: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = program[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif (start := _INSTRUCTION.match(line)) and (code := _OPCODE.search(line, start.end())):
            shape, rest = line[start.end() : code.start()], line[code.end() :]
            current.instructions[start[2]] = Instruction(start[2], shape, code[1], rest)
            if start[1]:
                current.root = start[2]
    if not entry:
        raise ValueError("this is no program's text: no computation is its ENTRY")
    return Scope(program, entry)
