"""Cost of gradient accumulation on 1 to 8 forced devices: the same batch at once and in parts.

    python benchmarks/accumulation.py

For each number of devices, runs `speechlm bench train` on a small model, alternately with the batch
whole and in 4 microbatches, each in a process of its own. Prints one JSON object for each number of
devices: the step's seconds both ways and their ratio. The ratio should not grow with the number of
devices.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from speechlm_jax.cli.main import LARGE_PAGES, MALLOC

DEVICES, PARTS = (1, 2, 4, 8), 4
COMMAND = "bench train tiny rows=32 length=256 steps=8 --vocab 4096 --dtype float32 --remat none"


def measure(devices: int, parts: int) -> float:
    """Returns the seconds of a step with the batch in `parts` microbatches."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, MALLOC: LARGE_PAGES}
    command = [sys.executable, "-m", "speechlm_jax.cli.main", *COMMAND.split()]
    done = subprocess.run(
        [*command, f"num_microbatches={parts}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["step_seconds"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures both ways in turns and prints the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args(arguments)
    for devices in DEVICES:
        turns = [(measure(devices, 1), measure(devices, PARTS)) for _ in range(args.turns)]
        whole, in_parts = (statistics.median(side) for side in zip(*turns, strict=True))
        found = {
            "devices": devices,
            "whole_seconds": round(whole, 4),
            "in_parts_seconds": round(in_parts, 4),
            "ratio": round(statistics.median(b / a for a, b in turns), 3),
        }
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
