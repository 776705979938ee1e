"""Mesh axes, and the two tables that place logical axes on them.

The mesh has four axes: `replica` crosses slices (slow network), `fsdp` splits parameters and batch,
`tensor` splits inside layers, `context` splits the sequence. A module names only logical axes (the
words of docs/glossary.md); a parameter and an activation may place the same word differently.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, PyTree, Shaped
from speechlm_jax.errors import UserError

MESH_AXES = ("replica", "fsdp", "tensor", "context")
BATCH_AXES = ("replica", "fsdp")

Rules: TypeAlias = Mapping[str, str | tuple[str, ...] | None]

PARAM_RULES: Rules = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "layers": None,
    "head_dim": None,
    "codebook": None,
    "channels": None,
    "kernel": None,
    "mels": None,
    "length": None,
    "frames": None,
}

ACTIVATION_RULES: Rules = {
    "batch": BATCH_AXES,
    "length": "context",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "embed": None,
    "layers": None,
    "head_dim": None,
    "codebook": None,
    "channels": None,
    "mels": None,
    "samples": None,
    "mel_frames": None,
    "frames": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one axis may be -1, which takes the rest.

    Attributes:
      replica: slices, or groups of devices, that hold the same parameters and split the batch.
      fsdp: devices that split both the parameters and the batch.
      tensor: devices that split the layers themselves: heads, and the width of the MLP.
      context: devices that split each row's positions.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise UserError(f"{axis}: {size} devices; give 1 or more, or -1 for the rest")


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices as a mesh with axes `MESH_AXES`, all of type Auto.

    `replica` follows the slices if the devices are of several slices.

    Raises:
      UserError: the axis sizes do not multiply to the number of devices, or `replica` is not a
        multiple of the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _mesh_shape(config, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) == 1:
        # `jax.make_mesh` would refuse tensor=2 on a torus of 8 x 8: no axis of it has two chips
        laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(laid, MESH_AXES, types)
    if shape[0] % len(slices):
        raise UserError(
            f"mesh.replica: {shape[0]} is not a multiple of the {len(slices)} slices of this run"
        )
    inside = (shape[0] // len(slices), *shape[1:])
    across = (len(slices), *(1 for _ in shape[1:]))
    laid = mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )
    return Mesh(laid, MESH_AXES, types)


def _mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    if sizes.count(-1) > 1:
        raise UserError(f"mesh: only one axis may be -1, not {sizes.count(-1)}")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % known == 0:
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        named = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"mesh: {named} does not lay out {num_devices} devices")
    return tuple(sizes)


def logical_to_spec(
    axes: Sequence[str | None],
    *,
    rules: Rules,
    mesh_shape: Mapping[str, int],
    shape: Sequence[int] | None = None,
    name: str = "array",
) -> PartitionSpec:
    """Maps an array's logical axes to mesh axes; mesh axes of size 1 are left out.

    Args:
      axes: one word for each dimension, None for a dimension without one.
      rules: table from logical axes to mesh axes.
      mesh_shape: size of each mesh axis.
      shape: the array's shape; if given, every split dimension must divide.
      name: name of the array in messages.

    Raises:
      ValueError: an axis is in no rule, two axes of one array lie on one mesh axis (also if that
        mesh axis has size 1, so that the fault shows before the run on a pod), or the ranks differ.
      UserError: a dimension does not divide by the devices along its mesh axes.
    """
    if shape is not None and len(shape) != len(axes):
        raise ValueError(f"{name}: shape {tuple(shape)} has {len(axes)} logical axes {tuple(axes)}")
    used: dict[str, str] = {}
    entries: list[tuple[str, ...] | None] = []
    for position, axis in enumerate(axes):
        targets = _targets(axis, rules, name)
        for target in targets:
            if target in used:
                raise ValueError(f"{name}: '{used[target]}' and '{axis}' both lie on '{target}'")
            used[target] = str(axis)
        targets = tuple(target for target in targets if mesh_shape.get(target, 1) > 1)
        parts = math.prod(mesh_shape[target] for target in targets)
        if shape is not None and shape[position] % parts:
            where = " x ".join(f"{target}={mesh_shape[target]}" for target in targets)
            raise UserError(
                f"{name}: axis '{axis}' has {shape[position]} entries, which do not divide over "
                f"the mesh's {where}; change the size or the mesh"
            )
        entries.append(targets or None)
    return PartitionSpec(*(entry[0] if entry and len(entry) == 1 else entry for entry in entries))


def _targets(axis: str | None, rules: Rules, name: str) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in rules:
        raise ValueError(f"{name}: logical axis '{axis}' is in no rule; rules: {', '.join(rules)}")
    target = rules[axis]
    return () if target is None else (target,) if isinstance(target, str) else tuple(target)


def param_shardings(
    shapes: PyTree, axes: PyTree, *, mesh: Mesh, rules: Rules = PARAM_RULES
) -> PyTree:
    """Returns the sharding of each parameter.

    Args:
      shapes: tree of arrays or `jax.ShapeDtypeStruct`.
      axes: the same tree with a tuple of logical axes at each leaf (None: whole on every device);
        or None, for all.

    Raises:
      ValueError, UserError: as `logical_to_spec`, naming the parameter.
    """

    def place(path: Any, leaf: Any, names: Sequence[str | None] | None) -> NamedSharding:
        if names is None:
            return NamedSharding(mesh, PartitionSpec())
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = logical_to_spec(
            names, rules=rules, mesh_shape=mesh.shape, shape=leaf.shape, name=name
        )
        return NamedSharding(mesh, spec)

    if axes is None:
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)
    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def in_scope(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Returns a context in which the mesh is in scope; None: none is."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def with_places(shapes: PyTree, places: PyTree) -> PyTree:
    """Returns shapes (of arrays, or `jax.ShapeDtypeStruct`) that know their shardings."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, places,
    )  # fmt: skip


def row_shards(mesh: Mesh | None) -> int:
    """Returns the number of parts into which the rows of a batch are split; None: one device."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows over `replica` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@dataclasses.dataclass(frozen=True)
class RowPart:
    """Part `index` of the `count` equal parts in which the rows of a batch are read."""

    index: int
    count: int


def row_part(mesh: Mesh) -> RowPart:
    """Returns the part of each batch's rows that this host must read.

    Hosts read different rows, except hosts that `tensor` or `context` spans: those read the same.

    Raises:
      UserError: hosts share some of their rows but not all.
    """
    places: dict[int, list[int]] = {}
    rows = mesh.devices.reshape(row_shards(mesh), -1)
    for place, devices in enumerate(rows):
        for host in {device.process_index for device in devices}:
            places.setdefault(host, []).append(place)
    parts = sorted({tuple(mine) for mine in places.values()})
    if len(parts) * len(parts[0]) != len(rows) or sum(map(len, parts)) != len(rows):
        raise UserError(
            f"mesh: {dict(mesh.shape)} gives {len(places)} hosts unlike parts of a batch; let "
            "tensor x context divide the devices of a host, or be a multiple of them"
        )
    return RowPart(parts.index(tuple(places[jax.process_index()])), len(parts))


def to_global(batch: Mapping[str, np.ndarray], *, mesh: Mesh) -> dict[str, Array]:
    """Turns this host's rows into global arrays whose rows lie over `replica` and `fsdp`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def platform() -> str:
    """Returns the platform of the mesh in scope, or without one, of this process's devices."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def axis_size(name: str) -> int:
    """Returns the number of devices along an axis of the mesh in scope; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[name]


def on_one_device() -> bool:
    """Returns whether no mesh is in scope, or one of a single device: nothing is communicated."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def over_mesh(
    run: Callable[..., PyTree], in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., PyTree]:
    """Returns `run` over the mesh in scope, on each device's parts; `run` itself on one device."""
    if on_one_device():
        return run
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Places an activation by `ACTIVATION_RULES` under the mesh in scope (`jax.set_mesh`).

    It does nothing if no mesh is in scope or its axes have one device, so a module needs no mesh.
    Inside a `shard_map` the axes that it has taken are left out.

    Raises:
      ValueError, UserError: as `logical_to_spec`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    free = [
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    ]
    sizes = {axis: mesh.shape[axis] for axis in free}
    spec = logical_to_spec(
        axes, rules=ACTIVATION_RULES, mesh_shape=sizes, shape=x.shape, name="activation"
    )
    if all(entry is None for entry in spec):
        return x
    return jax.lax.with_sharding_constraint(x, spec)
