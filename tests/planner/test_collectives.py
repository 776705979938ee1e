"""Collectives against programs whose collectives are known: compiled on CPU, written as TPU's."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from speechlm_jax.planner.collectives import Collective, collectives

SUM = """HloModule test, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}
"""


def _compiled(function, x, *, axes=(4,)):
    """Each device has its part of the rows of x."""
    names = ("replica", "fsdp")[-len(axes) :]
    mesh = jax.make_mesh(axes, names, axis_types=(AxisType.Auto,) * len(axes))
    over = jax.shard_map(
        function, mesh=mesh, in_specs=P(names), out_specs=P(names), check_vma=False
    )
    return jax.jit(over).lower(x).compile().as_text()


def _entry(lines: str, *, before: str = "", devices: int = 8, per_slice: int | None = None):
    text = f"{SUM}{before}\nENTRY %main (x: f32[64]) -> f32[64] {{\n"
    text += "  %x = f32[64]{0:T(256)} parameter(0)\n"
    text += "".join(f"  {line.strip()}\n" for line in lines.strip().splitlines()) + "}\n"
    return collectives(text, num_devices=devices, devices_per_slice=per_slice)


def _nest(x):
    """18 sums over the mesh: 6 in each of 3."""

    def inner(x, _):
        return 0.3 * jax.lax.psum(x, "fsdp"), ()

    def outer(x, _):
        return jax.lax.scan(inner, x + 1, length=6)[0], ()

    return jax.lax.scan(outer, x, length=3)[0]


def test_a_loop_that_data_ends_counts_as_told():
    def go_on(x):
        return jax.lax.while_loop(
            lambda x: jnp.sum(x) < 100, lambda x: x + jax.lax.psum(x, "fsdp"), x
        )

    text = _compiled(go_on, jnp.ones((4, 32)))
    with pytest.raises(ValueError, match="the trips of .* cannot be read"):
        collectives(text, num_devices=4)
    [found] = collectives(text, num_devices=4, open_trips=3)
    assert (found.kind, found.count) == ("all-reduce", 3)


def test_sums_in_nested_loops_are_counted_once_a_trip():
    text = _compiled(_nest, jnp.ones((4, 32)))
    known = [Collective("all-reduce", "ici", 18, 18 * 128, 18 * 128 * 2 * 3 // 4)]
    assert collectives(text, num_devices=4) == known
    # as on TPU, where no loop says how often it runs
    plain = re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text)
    assert plain != text
    assert collectives(plain, num_devices=4) == known


ONE = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 4096, 3072),
    "all-reduce": (lambda x: jax.lax.psum(x, "fsdp"), 1024, 1536),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), 1024, 768),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True), 1024, 768),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
        1024,
        1024,
    ),
}


@pytest.mark.parametrize("kind", ONE)
def test_each_kind_moves_its_bytes(kind):
    """A device holds 16 rows of 16 float32, 1024 bytes; four of them speak with each other."""
    function, held, wire = ONE[kind]
    text = _compiled(function, jnp.ones((64, 16)))
    assert collectives(text, num_devices=4) == [Collective(kind, "ici", 1, held, wire)]


def test_groups_over_slices_use_the_dcn():
    def both(x):
        return jax.lax.psum(jax.lax.psum(x, "fsdp") * x, "replica")

    text = _compiled(both, jnp.ones((4, 32)), axes=(2, 2))
    assert collectives(text, num_devices=4, devices_per_slice=2) == [
        Collective("all-reduce", "ici", 1, 128, 128),
        Collective("all-reduce", "dcn", 1, 128, 128),
    ]
    assert collectives(text, num_devices=4) == [Collective("all-reduce", "ici", 2, 256, 256)]


def test_of_a_conditional_the_larger_branch_counts():
    def either(x):
        def many(x):
            return _nest(x)

        def few(x):
            return jax.lax.psum(x, "fsdp")

        return jax.lax.cond(jax.lax.psum(x.sum(), "fsdp") > 0, many, few, x)

    (found,) = collectives(_compiled(either, jnp.ones((4, 32))), num_devices=4)
    assert (found.count, found.bytes) == (19, 18 * 128 + 4)


def test_only_loops_around_a_collective_have_to_be_read():
    def until(step, x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e3, step, x)

    x = jnp.ones((4, 32))
    assert not collectives(_compiled(partial(until, jnp.exp), x), num_devices=4)
    text = _compiled(partial(until, lambda x: jax.lax.psum(x, "fsdp") + 1), x)
    with pytest.raises(ValueError, match=r"trips of while\S* cannot be read"):
        collectives(text, num_devices=4)


PERMUTED = "[4,2]<=[2,4]T(1,0)"  # 0 with 4, 1 with 5, ...


@pytest.mark.parametrize(
    "groups, size, network",
    [
        ("{}", 8, "dcn"),
        ("{{0,1},{2,3},{4,5},{6,7}}", 2, "ici"),
        ("{{0,7},{1,6},{2,5},{3,4}}", 2, "dcn"),
        ("[2,4]<=[8]", 4, "ici"),
        ("[4,2]<=[8]", 2, "ici"),
        (PERMUTED, 2, "dcn"),
        ("[2,4]<=[4,2]T(1,0)", 4, "dcn"),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4, "ici"),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 2, "dcn"),
        ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_0','axis_1'}", 8, "dcn"),
        ("mesh['a'=8] {'a':(2)4}", 4, "ici"),  # the inner four
        ("mesh['a'=8] {'a':(1)2}", 2, "dcn"),  # the outer two
        ("mesh['a'=8] {'a':(2)2}", 2, "ici"),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", 4, "dcn"),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 2, "dcn"),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4, "ici"),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", 2, "dcn"),
    ],
)
def test_groups_are_read_however_they_are_written(groups, size, network):
    """Eight devices, four to a slice."""
    line = f"""ROOT %r = f32[64]{{0:T(256)S(1)}} all-reduce(%x), channel_id=1,
        replica_groups={groups}, use_global_device_ids=true, to_apply=%add"""
    (found,) = _entry(" ".join(line.split()), per_slice=4)
    assert found == Collective("all-reduce", network, 1, 256, 2 * 256 * (size - 1) // size)


def test_who_speaks_with_nobody_is_left_out():
    assert not _entry("""
        %r = f32[64]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add
        %g = f32[64]{0} all-gather(%r), replica_groups=mesh['a'=1,'b'=8] {'a'}, dimensions={0}
        ROOT %p = f32[64]{0} collective-permute(%g), source_target_pairs={{0,0},{1,1}}
    """)
    with pytest.raises(ValueError, match=r"groups of r \(all-reduce\)"):
        _entry("ROOT %r = f32[64]{0} all-reduce(%x), replica_groups=@new, to_apply=%add")


def test_what_starts_and_ends_counts_once():
    """Starts give operands, results and what the hardware keeps; all-reduce-start its result."""
    pairs = ",".join(f"{{{i},{(i + 1) % 512}}}" for i in range(512))
    before = """
%wrapped (w: f32[64]) -> f32[64] {
  %w = f32[64]{0} parameter(0)
  ROOT %a = f32[64]{0} all-to-all(%w), replica_groups=[64,8]<=[512], dimensions={0}
}
"""
    lines = f"""
        %gs = (f32[64]{{0:T(256)}}, f32[512]{{0:T(512)}}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) \
all-gather-start(%x), replica_groups=[64,8]<=[512], dimensions={{0}}
        %gd = f32[512]{{0:T(512)}} all-gather-done(%gs)
        %ps = (f32[64]{{0}}, f32[64]{{0}}, u32[]{{:S(2)}}) collective-permute-start(%x), \
channel_id=3, source_target_pairs={{{pairs}}}, metadata={{op_name="jit(f)/all-gather(x)"}}
        %pd = f32[64]{{0}} collective-permute-done(%ps)
        %rs = (bf16[64]{{0:T(256)(2,1)}}, f32[64]{{0}}) all-reduce-start(%x, %x), \
replica_groups=[64,8]<=[512], to_apply=%add
        %rd = (bf16[64]{{0}}, f32[64]{{0}}) all-reduce-done(%rs)
        %ss = ((f32[64]{{0}}), f32[8]{{0}}) reduce-scatter-start(%x), \
replica_groups=[64,8]<=[512], dimensions={{0}}, to_apply=%add
        %sd = f32[8]{{0}} reduce-scatter-done(%ss)
        %as = ((f32[64]{{0}}), f32[64]{{0}}, s32[]) async-start(%x), calls=%wrapped
        ROOT %ad = f32[64]{{0}} async-done(%as), calls=%wrapped
    """
    assert _entry(lines, before=before, devices=512) == [
        Collective("all-gather", "ici", 1, 2048, 1792),
        Collective("all-reduce", "ici", 1, 384, 672),
        Collective("reduce-scatter", "ici", 1, 256, 224),
        Collective("all-to-all", "ici", 1, 256, 224),
        Collective("collective-permute", "ici", 1, 256, 256),
    ]


def test_collectives_inside_fusions_of_a_tpu():
    """One starts in a fusion and ends in another; a fused all-reduce is a reduce-scatter."""
    gather = "bf16[1,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups={}, dimensions={1}"
    before = f"""
%start (p: bf16[1,64]) -> (bf16[1,512], u32[]) {{
  %p = bf16[1,64]{{1,0}} parameter(0)
  %all-gather.99 = {gather}
  ROOT %c = (bf16[1,512]{{1,0}}, u32[]) custom-call(%all-gather.99), \
custom_call_target="AsyncCollectiveStart"
}}

%end (p: bf16[1,64]) -> bf16[1,512] {{
  %p = bf16[1,64]{{1,0}} parameter(0)
  %all-gather.99.clone = {gather}
  ROOT %c.1 = bf16[1,512]{{1,0}} custom-call(%all-gather.99.clone), \
custom_call_target="AsyncCollectiveDone"
}}

%all-reduce-scatter.3 (q: f32[64]) -> f32[8] {{
  %q = f32[64]{{0}} parameter(0)
  %all-reduce.1 = f32[64]{{0}} all-reduce(%q), replica_groups={{}}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %slice = f32[8]{{0}} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={{8}}
}}
"""
    lines = """
        %b = bf16[1,64]{1,0} convert(%x)
        %s = (bf16[1,512]{1,0}, u32[]) fusion(%b), kind=kCustom, calls=%start
        %e = bf16[1,512]{1,0} fusion(%b), kind=kCustom, calls=%end
        ROOT %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
    """
    assert _entry(lines, before=before) == [
        Collective("all-gather", "ici", 1, 1024, 896),
        Collective("reduce-scatter", "ici", 1, 256, 224),
    ]


def test_a_product_window_by_window_counts_by_twos():
    """XLA unrolls such a loop: four windows are two trips, each sends twice."""
    permute = "collective-permute(%w), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    before = f"""
%windowed_dot_general_body (p: (f32[64], u32[])) -> (f32[64], u32[]) {{
  %p = (f32[64]{{0:T(256)}}, u32[]{{:T(128)}}) parameter(0)
  %w = f32[64]{{0:T(256)}} get-tuple-element(%p), index=0
  %i = u32[]{{:T(128)}} get-tuple-element(%p), index=1
  %p1 = f32[64]{{0:T(256)}} {permute}
  %p2 = f32[64]{{0:T(256)}} {permute.replace("%w", "%p1")}
  %two = u32[]{{:T(128)}} constant(2)
  %n = u32[]{{:T(128)}} add(%i, %two)
  ROOT %t = (f32[64]{{0}}, u32[]) tuple(%p2, %n)
}}

%windowed_dot_general_cond (p.1: (f32[64], u32[])) -> pred[] {{
  %p.1 = (f32[64]{{0:T(256)}}, u32[]{{:T(128)}}) parameter(0)
  %i.1 = u32[]{{:T(128)}} get-tuple-element(%p.1), index=1
  %four = u32[]{{:T(128)}} constant(4)
  ROOT %c = pred[]{{:T(512)}} compare(%i.1, %four), direction=LT
}}
"""
    lines = """
        %z = u32[]{:T(128)} constant(0)
        %t0 = (f32[64]{0}, u32[]) tuple(%x, %z)
        ROOT %l = (f32[64]{0}, u32[]) while(%t0), condition=%windowed_dot_general_cond, \
body=%windowed_dot_general_body
    """
    sent = _entry(lines, before=before, devices=4)
    assert sent == [Collective("collective-permute", "ici", 4, 1024, 1024)]
