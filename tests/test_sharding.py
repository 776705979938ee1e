"""Mesh shapes, the two rule tables, and activations placed by the mesh in scope."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from speechlm_jax.errors import UserError
from speechlm_jax.sharding import (
    ACTIVATION_RULES,
    MESH_AXES,
    PARAM_RULES,
    MeshConfig,
    RowPart,
    constrain,
    logical_to_spec,
    make_mesh,
    param_shardings,
    row_part,
    to_global,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 4, 1, 1)),
        (MeshConfig(tensor=2), (1, 2, 2, 1)),
        (MeshConfig(replica=-1, fsdp=2), (2, 2, 1, 1)),
        (MeshConfig(fsdp=2, context=2), (1, 2, 1, 2)),
    ],
)
def test_one_axis_takes_the_rest(config, shape):
    mesh = make_mesh(config)
    assert tuple(mesh.shape[axis] for axis in MESH_AXES) == shape


@pytest.mark.parametrize(
    "config",
    [MeshConfig(fsdp=3), MeshConfig(tensor=3), MeshConfig(tensor=-1)],
)
def test_a_mesh_that_does_not_lay_out_is_the_users_mistake(config):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(config)


@pytest.mark.parametrize("given", [{"context": 0}, {"fsdp": -2}])
def test_a_size_that_no_mesh_has_is_refused_where_it_is_read(given):
    with pytest.raises(UserError, match="give 1 or more, or -1 for the rest"):
        MeshConfig(**given)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def mesh_of(hosts, shape):
    """A mesh of these hosts' devices, in this order."""
    devices = [FakeDevice(number, host) for number, host in enumerate(hosts)]
    return Mesh(np.array(devices, object).reshape(shape), MESH_AXES)


@pytest.mark.parametrize(
    ("hosts", "shape", "part"),
    [
        ((0, 0, 1, 1), (1, 4, 1, 1), RowPart(0, 2)),
        ((0, 0, 1, 1), (1, 2, 2, 1), RowPart(0, 2)),
        ((0, 0, 1, 1), (1, 1, 4, 1), RowPart(0, 1)),
        ((0, 0, 1, 1, 2, 2, 3, 3), (1, 2, 2, 2), RowPart(0, 2)),
        ((1, 1, 0, 0), (2, 2, 1, 1), RowPart(1, 2)),
    ],
)
def test_hosts_read_the_rows_of_their_devices(hosts, shape, part):
    assert row_part(mesh_of(hosts, shape)) == part


def test_hosts_that_share_some_rows_are_refused():
    with pytest.raises(UserError, match="2 hosts unlike parts"):
        row_part(mesh_of((0, 0, 0, 1, 1, 1), (1, 3, 2, 1)))


def test_axes_follow_the_table():
    sizes = {"replica": 2, "fsdp": 2, "tensor": 2, "context": 1}
    spec = logical_to_spec(("layers", "embed", "mlp"), rules=PARAM_RULES, mesh_shape=sizes)
    assert spec == PartitionSpec(None, "fsdp", "tensor")
    spec = logical_to_spec(("batch", "length", "heads"), rules=ACTIVATION_RULES, mesh_shape=sizes)
    assert spec == PartitionSpec(("replica", "fsdp"), None, "tensor")


def test_a_collision_raises_even_on_one_device():
    alone = dict.fromkeys(MESH_AXES, 1)
    with pytest.raises(ValueError, match="'embed' and 'embed' both lie on 'fsdp'"):
        logical_to_spec(("embed", "embed"), rules=PARAM_RULES, mesh_shape=alone)


def test_an_unknown_axis_raises():
    with pytest.raises(ValueError, match="'embedding' is in no rule"):
        logical_to_spec(("embedding",), rules=PARAM_RULES, mesh_shape={})


def test_what_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig())
    shapes = {"table": jax.ShapeDtypeStruct((8, 6), jnp.float32)}
    with pytest.raises(UserError, match="table: axis 'embed' has 6 entries.*fsdp=4"):
        param_shardings(shapes, {"table": ("vocab", "embed")}, mesh=mesh)
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert param_shardings(shapes, {"table": ("vocab", "embed")}, mesh=alone)["table"].spec == (
        PartitionSpec(None, None)
    )


def test_constrain_needs_no_mesh():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", "embed") is x


def test_constrain_places_and_keeps_the_values():
    x = jnp.arange(32.0).reshape(4, 8)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2))):
        y = jax.jit(lambda x: constrain(2 * x, "batch", "mlp"))(x)
        with pytest.raises(UserError, match="axis 'batch' has 3 entries"):
            jax.jit(lambda x: constrain(x, "batch", "mlp"))(x[:3])
    assert y.sharding.shard_shape(y.shape) == (2, 4)
    np.testing.assert_array_equal(y, 2 * x)


def test_rows_are_split_over_replica_and_fsdp():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2))
    rows = np.arange(12.0).reshape(4, 3)
    split = to_global({"x": rows}, mesh=mesh)["x"]
    assert split.sharding.shard_shape(split.shape) == (1, 3)
    np.testing.assert_array_equal(split, rows)
