"""The TPU compiler on a machine without a TPU: a lowered step -> its memory and its collectives.

Results are kept in a folder, by the text of the program: compiling takes minutes.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.planner.collectives import Collective, collectives
from speechlm_jax.planner.copies import Copy, copies
from speechlm_jax.planner.slices import GIB, Slices

_log = logging.getLogger("speechlm.planner")

# Without these, the compiler asks Cloud's metadata server what machine this is, and reports that it
# cannot know; and it locks out other processes, although it holds no TPU.
ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
VERSION = 2  # of the fields of `Compiled` and their meaning
WHOLE = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for a program.

    Attributes:
      fits: true if the compiler found room, and needs no more than a chip has.
      hbm_bytes: bytes that it needs on each chip at its peak, whether or not the chip has them.
      temporary_bytes: of these, bytes of neither the arguments nor the program (if it does not fit:
        all but the arguments).
      program_bytes: of these, bytes of the program itself; 0 if it does not fit.
      flops: FLOPs by the compiler's own count, each loop's body once; None if it does not fit.
      collectives: collectives of one run (`open_trips` of a loop that data ends); none if it does
        not fit.
      copies: large arrays that it copies in memory; none if it does not fit.
      seconds: seconds that compiling took.
    """

    fits: bool
    hbm_bytes: int
    temporary_bytes: int
    program_bytes: int
    flops: float | None
    collectives: tuple[Collective, ...]
    copies: tuple[Copy, ...]
    seconds: float


def devices(slices: Slices) -> list[Any]:
    """Returns the devices of absent slices, for a mesh.

    Raises:
      UserError: the TPU compiler is not installed, or knows no such slice.
    """
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    chip = slices.chip
    options: dict[str, Any] = {"chip_config_name": "megacore"} if slices.kind == "v4" else {}
    if slices.number > 1:
        options["num_slices"] = slices.number
    if slices.chips_a_slice == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    shape = "x".join(map(str, slices.shape))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.compiler_name}:{shape}", **options
        )
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if "not installed" in reason or isinstance(error, ImportError):
            raise UserError(
                "plan: the TPU compiler is not installed; `pip install -e '.[tpu]'`"
            ) from None
        raise UserError(f"{slices.name}: the TPU compiler knows no such slice ({reason})") from None
    return list(found.devices)


def compile_program(
    lowered: Any,
    slices: Slices,
    *,
    argument_bytes: int,
    open_trips: int | None = None,
    keep: Path | None = None,
) -> Compiled:
    """Compiles a lowered program; one that is too large gives a result, not an error.

    Args:
      argument_bytes: bytes of its arguments on each chip, which the compiler does not report for a
        program that does not fit.
      open_trips: see `collectives.collectives`.
      keep: folder of earlier results; None: there is none.
    """
    if keep is None:
        found = _compile(lowered, slices, argument_bytes, open_trips)
    else:
        found = _compile_once(lowered, slices, argument_bytes, open_trips, keep)
    # the compiler's figures may still add up to more than a chip has
    fits = found.fits and found.hbm_bytes <= slices.chip.hbm_bytes
    return dataclasses.replace(found, fits=fits)


def _compile_once(
    lowered: Any, slices: Slices, argument_bytes: int, open_trips: int | None, keep: Path
) -> Compiled:
    """Returns the earlier result for this program, if there is one; else compiles and keeps it."""
    asked = [] if open_trips is None else [f"open trips {open_trips}"]
    text = "\n".join([str(VERSION), *_compiler(slices), slices.name, *asked, lowered.as_text()])
    path = keep / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(UserError, OSError):  # not there, or of another version
        return configs.from_json(Compiled, artifacts.read_json(path))
    found = _compile(lowered, slices, argument_bytes, open_trips)
    try:
        artifacts.write_json(path, configs.to_json(found))
    except OSError as error:
        _log.warning("%s: cannot be kept for the next time (%s)", path, error.strerror)
    return found


def _compile(lowered: Any, slices: Slices, argument_bytes: int, open_trips: int | None) -> Compiled:
    """Compiles; `fits` of the result says only whether the compiler found room."""
    began = time.perf_counter()
    try:
        with _no_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error), argument_bytes)
        if needed is None:
            raise
        seconds = time.perf_counter() - began
        return Compiled(False, needed, needed - argument_bytes, 0, None, (), (), seconds)
    seconds = time.perf_counter() - began
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    # `temp_size_in_bytes` adds up buffers that never exist at the same time: half as much again
    peak, program = memory.peak_memory_in_bytes, memory.generated_code_size_in_bytes
    text = compiled.as_text()
    sent = collectives(
        text, num_devices=slices.chips, devices_per_slice=slices.chips_a_slice,
        open_trips=open_trips,
    )  # fmt: skip
    return Compiled(
        fits=True,
        hbm_bytes=peak + program,
        temporary_bytes=peak - memory.argument_size_in_bytes,
        program_bytes=program,
        flops=costs.get("flops"),
        collectives=tuple(sent),
        copies=tuple(copies(text)),
        seconds=seconds,
    )


def _compiler(slices: Slices) -> list[str]:
    """Returns what the result depends on beside the program: the compiler's build and its flags."""
    flags = [os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    return [devices(slices)[0].client.platform_version, *flags]


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Switches off JAX's cache, which stores a program for absent chips but cannot read it back."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or the setting that was found first stays
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _needed(message: str, argument_bytes: int) -> int | None:
    """Returns the bytes that the compiler needed but did not have; None if it failed otherwise."""
    for pattern, rest in ((WHOLE, 0), (TEMPORARIES, argument_bytes)):
        found = pattern.search(message)
        if found:
            return rest + int(float(found[1]) * UNITS[found[2]])
    return None
