"""Seconds to trace a step with 4 and with 40 layers; they are scanned, so both take about the same.

    python benchmarks/tracing.py

Traces and lowers the step of the 9B preset with 4 and 40 layers; no weights are made, and nothing
is compiled. Prints one JSON object for each depth (median of five turns, taken alternately) and one
with the ratio. Exit code 1 unless the ratio is below 2.
"""

import dataclasses
import json
import statistics
import sys
import time

import jax

from speechlm_jax.lm.bench import BenchConfig, synthetic_rows, synthetic_stage
from speechlm_jax.lm.presets import preset
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.program import make_program
from speechlm_jax.train.state import StateConfig

DEPTHS, TURNS, VOCAB = (4, 40), 5, 168_960
ROWS = BenchConfig(rows=2, length=1024)


def trace(num_layers: int) -> float:
    """Returns the seconds from a config to a lowered step, without JAX's caches."""
    jax.clear_caches()
    model = preset("9B", vocab_size=VOCAB)
    stack = dataclasses.replace(model.transformer, num_layers=num_layers)
    model = dataclasses.replace(model, transformer=stack)
    mesh = make_mesh(MeshConfig())
    began = time.perf_counter()
    stage = synthetic_stage(model)
    optimizer = OptimizerConfig(warmup_steps=0, schedule="constant")
    program = make_program(stage, mesh, optimizer=optimizer, total_steps=1, state=StateConfig())
    program.lower(synthetic_rows(ROWS, VOCAB))
    return time.perf_counter() - began


def main() -> int:
    """Measures both depths in turns and prints the medians."""
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(TURNS):
        for depth in DEPTHS:
            seconds[depth].append(trace(depth))
    median = {depth: statistics.median(found) for depth, found in seconds.items()}
    for depth in DEPTHS:
        print(json.dumps({"layers": depth, "trace_seconds": round(median[depth], 3)}))
    ratio = median[DEPTHS[1]] / median[DEPTHS[0]]
    print(json.dumps({"ratio": round(ratio, 3)}))
    return int(ratio >= 2)


if __name__ == "__main__":
    sys.exit(main())
