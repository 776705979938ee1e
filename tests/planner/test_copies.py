"""Copies, in a program that makes three."""

from speechlm_jax.planner.copies import Copy, copies

COPYING = """HloModule test, is_scheduled=true

%turned (p: bf16[64,8192,128]) -> bf16[64,128,8192] {
  %p = bf16[64,8192,128]{2,1,0} parameter(0)
  ROOT %t = bf16[64,128,8192]{2,1,0} transpose(%p), dimensions={0,2,1}
}

%body (s: (bf16[64,8192,128])) -> (bf16[64,8192,128]) {
  %s = (bf16[64,8192,128]{2,1,0}) parameter(0)
  %x = bf16[64,8192,128]{2,1,0} get-tuple-element(%s), index=0
  %near = bf16[64,8192,128]{2,1,0:T(8,128)S(1)} copy(%x)
  %other = bf16[64,8192,128]{0,2,1:T(8,128)} copy(%near)
  %back = bf16[64,8192,128]{2,1,0:T(8,128)} copy(%other)
  %small = bf16[8,128]{1,0} copy(%x)
  ROOT %o = (bf16[64,8192,128]{2,1,0}) tuple(%back)
}

ENTRY %main (x: bf16[64,8192,128]) -> bf16[64,128,8192] {
  %x = bf16[64,8192,128]{2,1,0} parameter(0)
  ROOT %f = bf16[64,128,8192]{2,1,0} fusion(%x), kind=kLoop, calls=%turned
}
"""


def test_copies_are_counted_where_they_take_memory():
    size = 64 * 8192 * 128
    assert copies(COPYING) == [
        Copy("bf16[64,8192,128]", size, 2), Copy("bf16[64,128,8192]", size, 1)
    ]  # fmt: skip
