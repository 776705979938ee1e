"""The TPU compiler on a machine without a TPU: a lowered step -> the memory that it takes."""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from speechlm_jax.errors import UserError
from speechlm_jax.planner.slices import GIB, Slices

# The compiler would ask Cloud's metadata server what machine this is, and say that it cannot know;
# and it would lock out others, although it holds no TPU.
ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# "Used 74.90G of 31.25G hbm", or "... temporaries (187.85G) exceeds available HBM (15.75G)"
NEEDS = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program.

    Attributes:
      hbm_bytes: that it needs on each chip, whether or not they are there.
      temporary_bytes: of these, neither arguments nor results; None where it does not fit.
      program_bytes: of these, the program itself; None likewise.
      flops: by the compiler's own count, each loop's body once; None likewise.
      text: the optimised program; None likewise.
      seconds: that compiling took.
    """

    hbm_bytes: int
    temporary_bytes: int | None
    program_bytes: int | None
    flops: float | None
    text: str | None
    seconds: float


def devices(slices: Slices) -> list[Any]:
    """The devices of slices that are not there, for a mesh.

    Raises:
      UserError: the TPU compiler is not installed, or knows no such slice.
    """
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    chip = slices.chip
    options: dict[str, Any] = {"chip_config_name": "megacore"} if slices.kind == "v4" else {}
    if slices.number > 1:
        options["num_slices"] = slices.number
    shape = "x".join(map(str, slices.shape))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.compiler_name}:{shape}", **options
        )
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if "not installed" in reason or isinstance(error, ImportError):
            raise UserError(
                "plan: the TPU compiler is not installed; `pip install 'speechlm_jax[tpu]'`"
            ) from None
        raise UserError(f"{slices.name}: the TPU compiler knows no such slice ({reason})") from None
    return list(found.devices)


def compile_step(lowered: Any) -> Compiled:
    """Compiles; a program that is too large is an answer, not an error."""
    began = time.perf_counter()
    try:
        with _no_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        return Compiled(needed, None, None, None, None, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    program, temporary = memory.generated_code_size_in_bytes, memory.temp_size_in_bytes
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        hbm_bytes=given + temporary + program,
        temporary_bytes=temporary,
        program_bytes=program,
        flops=costs.get("flops"),
        text=compiled.as_text(),
        seconds=seconds,
    )


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """JAX's cache keeps a program for chips that are not there, and then cannot read it."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or the setting that was found first stays
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _needed(message: str) -> int | None:
    """Bytes that the compiler asked for in vain; None if it failed for another reason."""
    for pattern in NEEDS:
        found = pattern.search(message)
        if found:
            return int(float(found[1]) * UNITS[found[2]])
    return None
