"""TPU slices by shape (`v5p:4x4x4`) or by Cloud's name (`v5p-128`), and figures of their chips."""

import dataclasses
import math
import re

from speechlm_jax.errors import UserError
from speechlm_jax.train.work import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip.

    Sources: HBM as the TPU compiler of libtpu 0.0.42 reports it when memory does not suffice; the
    rest from Google Cloud's pages and "How to Scale Your Model" (Austin et al. 2025), chapter 2.

    Attributes:
      compiler_name: name in the compiler's names of topologies.
      device_kind: name in JAX.
      hbm_bytes: bytes that a program may use.
      hbm_bandwidth: bytes per second.
      ici_bandwidth: bytes per second that a chip sends over all its links.
      dcn_bandwidth: bytes per second that a chip sends to other slices through its host.
      axes: number of axes of the torus that chips form.
      named_by_cores: true if Cloud's names count two cores per chip.
      cloud_name: part before the number in Cloud's names.
    """

    compiler_name: str
    device_kind: str
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    axes: int
    named_by_cores: bool
    cloud_name: str

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.device_kind]


CHIPS = {
    "v4": Chip(
        "v4", "TPU v4", int(30.75 * GIB), 1.2e12, 3 * 9e10, 6.25e9,
        axes=3, named_by_cores=True, cloud_name="v4",
    ),
    "v5e": Chip(
        "v5e", "TPU v5 lite", int(15.75 * GIB), 8.1e11, 2 * 9e10, 3.125e9,
        axes=2, named_by_cores=False, cloud_name="v5litepod",
    ),
    "v5p": Chip(
        "v5", "TPU v5", int(95.74 * GIB), 2.8e12, 3 * 1.8e11, 6.25e9,
        axes=3, named_by_cores=True, cloud_name="v5p",
    ),
    "v6e": Chip(
        "v6e", "TPU v6 lite", int(31.25 * GIB), 1.6e12, 2 * 1.8e11, 1.25e10,
        axes=2, named_by_cores=False, cloud_name="v6e",
    ),
}  # fmt: skip
# The shapes behind Cloud's names; 3-D ones are as close to a cube as multiples of 4 allow.
SQUARES = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 768: "8x8x12", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slices:
    """One or more equal slices.

    Attributes:
      kind: key of `CHIPS`.
      shape: chips along each axis of the torus.
      number: number of slices.
    """

    kind: str
    shape: tuple[int, ...]
    number: int = 1

    @property
    def chip(self) -> Chip:
        """The kind of chip, with its figures."""
        return CHIPS[self.kind]

    @property
    def chips_a_slice(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.number * self.chips_a_slice

    @property
    def name(self) -> str:
        """Name such as v5p:4x4x4, or 2 x v6e:8x8."""
        one = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return one if self.number == 1 else f"{self.number} x {one}"


def parse_topology(text: str, *, slices: int = 1) -> Slices:
    """Parses `v5p:4x4x4`: the kind of chip, and the number of chips along each axis.

    Raises:
      UserError: an unknown chip, a shape of too few or too many axes, fewer than one slice.
    """
    kind, _, sizes = text.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology {text}: no chip {kind!r}; known: {', '.join(CHIPS)}")
    axes = CHIPS[kind].axes
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") != axes - 1:
        raise UserError(f"--topology {text}: {kind} has {axes} axes, e.g. {kind}:{_example(axes)}")
    if slices < 1:
        raise UserError(f"--slices {slices}: give 1 or more")
    return Slices(kind, tuple(map(int, sizes.split("x"))), slices)


def parse_accelerator(text: str, *, slices: int = 1) -> Slices:
    """Parses Cloud's name: `v4-` and `v5p-` count cores, `v5litepod-` and `v6e-` chips.

    Raises:
      UserError: an unknown name, or a number of chips that no slice has.
    """
    name, _, number = text.rpartition("-")
    kinds = {chip.cloud_name: kind for kind, chip in CHIPS.items()}
    if name not in kinds or not number.isdecimal():
        known = ", ".join(f"{name}-N" for name in kinds)
        raise UserError(f"--accelerator {text}: is none of {known}")
    kind = kinds[name]
    chips, rest = divmod(int(number), 2 if CHIPS[kind].named_by_cores else 1)
    shapes = SQUARES if CHIPS[kind].axes == 2 else CUBES
    if rest or chips not in shapes:
        sizes = [size * (2 if CHIPS[kind].named_by_cores else 1) for size in shapes]
        listed = ", ".join(f"{name}-{size}" for size in sizes)
        raise UserError(f"--accelerator {text}: no such slice; known: {listed}")
    return parse_topology(f"{kind}:{shapes[chips]}", slices=slices)


def _example(axes: int) -> str:
    return "4x4x4" if axes == 3 else "4x8"
