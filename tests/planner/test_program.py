"""Loops are followed to the trips that they make: against Python's range and XLA's own notes."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from speechlm_jax.planner.program import Scope, read_program

# A loop as TPU programs have it: the state's first element counts, the second is handed on.
LOOP = """HloModule test, is_scheduled=true

%body (p: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {{
  %p = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, /*index=2*/f32[8]{{0:T(256)S(1)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0, metadata={{op_name="jit(f)/while/body(x)"}}
  %bound = s32[]{{:T(128)}} get-tuple-element(%p), index=1
  %x = f32[8]{{0:T(256)S(1)}} get-tuple-element(%p), index=2
  %step = s32[]{{:T(128)}} constant({step})
  %next = s32[]{{:T(128)S(6)}} add(%i, %step)
  ROOT %t = (s32[]{{:T(128)}}, s32[], f32[8]{{0}}) tuple(%next, %bound, %x)
}}

%condition (p.1: (s32[], s32[], f32[8])) -> pred[] {{
  %p.1 = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, f32[8]{{0:T(256)S(1)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  %bound.1 = s32[]{{:T(128)}} {bound}
  ROOT %more = pred[]{{:T(512)}} compare(%i.1, %bound.1), direction={direction}
}}

ENTRY %main (x: f32[8], n: s32[]) -> (s32[], s32[], f32[8]) {{
  %x.1 = f32[8]{{0:T(256)}} parameter(0)
  %n = s32[]{{:T(128)}} parameter(1)
  %first = s32[]{{:T(128)}} constant({first})
  %copied = s32[]{{:T(128)}} copy(%first)
  %last = s32[]{{:T(128)}} {last}
  %start = (s32[], s32[], f32[8]{{0:T(256)S(1)}}) tuple(%copied, %last, %x.1)
  ROOT %loop.7 = (s32[], s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body
}}
"""
HANDED_ON = "get-tuple-element(%p.1), index=1"


def _trips(text: str) -> list[int]:
    return list(_trips_in(read_program(text)))


def _trips_in(scope: Scope) -> Iterator[int]:
    """Of all loops, each before those inside it."""
    for instruction in scope.instructions:
        if instruction.opcode == "while":
            yield scope.trips(instruction)
            yield from _trips_in(scope.body(instruction))
        elif instruction.called:
            yield from _trips_in(scope.called(instruction))


@pytest.mark.parametrize("bound", ["constant({last})", HANDED_ON], ids=["constant", "handed on"])
@pytest.mark.parametrize(
    "first, last, step, direction",
    [(0, 28, 1, "LT"), (0, 8, 2, "LT"), (0, 7, 2, "LT"), (3, 9, 1, "LE"), (40, 0, -1, "GT")]
    + [(5, 5, 1, "LT"), (12, 0, -4, "NE")],
)
def test_a_loop_runs_as_often_as_a_range_has_numbers(first, last, step, direction, bound):
    past = last + (step if direction == "LE" else 0)
    text = LOOP.format(
        first=first,
        last=f"constant({last})",
        step=step,
        direction=direction,
        bound=bound.format(last=last),
    )
    assert _trips(text) == [len(range(first, past, step))]


@pytest.mark.parametrize(
    "change, why",
    [
        ({"last": "copy(%n)"}, "parameter"),  # the bound is data
        ({"step": 0}, "never ends"),
        ({"step": -1}, "after 50 trips"),
        ({"bound": "constant({1, 2})"}, "literal"),
        ({"last": "custom-call(%n)"}, "custom-call"),
    ],
)
def test_a_loop_that_cannot_be_read_is_named(change, why, monkeypatch):
    monkeypatch.setattr("speechlm_jax.planner.program.MOST_TRIPS", 50)
    given = {"first": 0, "last": "constant(5)", "step": 1, "direction": "LT", "bound": HANDED_ON}
    with pytest.raises(ValueError, match=rf"loop\.7.*{why}"):
        _trips(LOOP.format(**{**given, **change}))


def test_a_loop_inside_a_loop_knows_what_the_outer_one_hands_on():
    """XLA moves constants out of loops: the inner bound comes in with the outer loop's state."""
    inner = LOOP.format(first=0, last="constant(0)", step=1, direction="LT", bound=HANDED_ON).split(
        "ENTRY"
    )[0]
    outer = """
%outer_body (q: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %q = (s32[], s32[], f32[8]{0}) parameter(0)
  %o = s32[] get-tuple-element(%q), index=0
  %b = s32[] get-tuple-element(%q), index=1
  %y = f32[8]{0} get-tuple-element(%q), index=2
  %zero = s32[] constant(0)
  %given = (s32[], s32[], f32[8]{0}) tuple(%zero, %NAME, %y)
  %in = (s32[], s32[], f32[8]{0}) while(%given), condition=%condition, body=%body
  %one = s32[] constant(1)
  %on = s32[] add(%o, %one)
  ROOT %r = (s32[], s32[], f32[8]{0}) tuple(%on, %b, %y)
}

ENTRY %main (x: f32[8]) -> (s32[], s32[], f32[8]) {
  %x.1 = f32[8]{0} parameter(0)
  %none = s32[] constant(0)
  %five = s32[] constant(5)
  %start = (s32[], s32[], f32[8]{0}) tuple(%none, %five, %x.1)
  ROOT %out = (s32[], s32[], f32[8]{0}) while(%start), condition=%condition, body=%outer_body
}
"""

    assert _trips(inner + outer.replace("NAME", "b")) == [5, 5]
    with pytest.raises(ValueError, match="in cannot be read.* changes"):
        _trips(inner + outer.replace("NAME", "o"))  # the outer counter: another bound each trip


def test_a_loop_inside_a_branch_knows_what_the_branch_is_given():
    inner = LOOP.format(first=0, last="constant(0)", step=1, direction="LT", bound=HANDED_ON).split(
        "ENTRY"
    )[0]
    branch = """
%NAME (q.NAME: (s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %b = s32[] get-tuple-element(%q), index=0
  %y = f32[8]{0} get-tuple-element(%q), index=1
  %zero = s32[] constant(0)
  %given = (s32[], s32[], f32[8]{0}) tuple(%zero, %b, %y)
  ROOT %in = (s32[], s32[], f32[8]{0}) while(%given), condition=%condition, body=%body
}
"""
    entry = """
ENTRY %main (x: f32[8], n: s32[]) -> (s32[], s32[], f32[8]) {
  %x = f32[8]{0} parameter(0)
  %n = s32[] parameter(1)
  %five = s32[] constant(5)
  %six = s32[] constant(6)
  %a = (s32[], f32[8]{0}) tuple(%five, %x)
  %b = (s32[], f32[8]{0}) tuple(%six, %x)
  ROOT %out = (s32[], s32[], f32[8]{0}) conditional(%n, %a, %b), branch_computations={%one, %two}
}
"""
    text = inner + branch.replace("NAME", "one") + branch.replace("NAME", "two") + entry
    main = read_program(text)
    (choice,) = (each for each in main.instructions if each.opcode == "conditional")
    assert [list(_trips_in(each)) for each in main.branches(choice)] == [[5], [6]]


def test_trips_are_those_that_xla_notes():
    def nest(x):
        def inner(x, row):
            return jnp.sin(x * row), ()

        def outer(x, rows):
            return jax.lax.scan(inner, x, rows)

        return jax.lax.scan(outer, x, jnp.ones((3, 37, 64)))[0]

    noted = jax.jit(nest).lower(jnp.ones(64)).compile().as_text()
    plain = re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", noted)
    assert noted != plain
    assert _trips(noted) == _trips(plain) == [3, 37]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        read_program("module @jit_f attributes {}")
