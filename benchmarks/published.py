"""Our roofline compared with published training speeds: docs/plans/published.json.

    python benchmarks/published.py                  # all, some minutes each on two cores
    python benchmarks/published.py --only v6e       # rows whose topology contains this

Each row is a published speed of a model's training on a TPU slice. Our training step for the same
model, slice and row length is compiled, and its bounds are computed. The measured share of a bound
shows how far real steps are from such bounds. `python benchmarks/plans.py --table` writes the rows
to docs/plans/README.md.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.cli.plan import cache_folder
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import ExecutionConfig, TransformerConfig
from speechlm_jax.planner.plan import Plan, plan_training
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.sharding import MeshConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

FILE = Path(__file__).resolve().parents[1] / "docs/plans/published.json"
MAXTEXT = "MaxText, docs/reference/models/tiering.md"
RECIPES = "tpu-recipes, training/trillium"
AXLEARN = "AXLearn, experiments/text/gpt/fuji.py"


def _llama(
    vocab: int, *, layers: int = 32, embed: int = 4096, mlp: int = 14336, **more: Any
) -> Any:
    """Returns the config of a model like Llama, with a head_dim of 128."""
    shape: dict[str, Any] = {"heads": embed // 128, "kv_heads": 8, "head_dim": 128, **more}
    execution = ExecutionConfig(remat="full")
    stack = TransformerConfig(layers, embed=embed, mlp=mlp, execution=execution, **shape)
    return LanguageModelConfig(vocab, stack, tied=False, scale_embeddings=False, dtype="bfloat16")


MODELS: dict[str, LanguageModelConfig] = {
    "Llama 2 7B": _llama(32_000, mlp=11008, kv_heads=32),
    "Llama 2 70B": _llama(32_000, layers=80, embed=8192, mlp=28672),
    "Llama 3.1 8B": _llama(128_256),
    "Llama 3.1 70B": _llama(128_256, layers=80, embed=8192, mlp=28672),
    "Mistral 7B": _llama(32_768),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published measurement; `rows` (a chip) are the published ones if known, else what fits."""

    model: str
    topology: str
    slices: int
    length: int
    rows: int
    tokens_per_second_per_chip: float
    source: str


PUBLISHED = (
    Published("Llama 3.1 8B", "v6e:2x4", 1, 8192, 2, 7139, f"{RECIPES}/Llama3.1-8B-MaxText"),
    Published("Llama 3.1 8B", "v6e:8x8", 1, 8192, 2, 7247, f"{RECIPES}/Llama3.1-8B-MaxText"),
    Published("Llama 3.1 8B", "v6e:16x16", 1, 8192, 2, 7207, MAXTEXT),
    Published("Mistral 7B", "v6e:2x4", 1, 8192, 2, 7777, f"{RECIPES}/Mistral-7B-MaxText"),
    Published("Llama 3.1 70B", "v6e:16x16", 1, 8192, 1, 960, MAXTEXT),
    Published("Llama 2 7B", "v4:8x8x8", 1, 2048, 4, 2704, AXLEARN),
    Published("Llama 2 7B", "v5p:4x8x8", 1, 2048, 8, 5749, AXLEARN),
    Published("Llama 2 7B", "v5e:16x16", 4, 2048, 2, 1679, AXLEARN),
    Published("Llama 2 7B", "v5e:16x16", 4, 4096, 1, 1853, AXLEARN),
    Published("Llama 2 70B", "v5p:8x8x8", 1, 4096, 2, 692, MAXTEXT),
)


def compiled(row: Published) -> Plan:
    """Returns the plan of our training step for the same model, slice and row length."""
    slices = parse_topology(row.topology, slices=row.slices)
    train = TrainConfig(
        0, optimizer=OptimizerConfig(warmup_steps=1), mesh=MeshConfig(replica=row.slices)
    )
    data = RowsData("", batch_size=row.rows * slices.chips)
    experiment = LanguageModelExperiment(data, MODELS[row.model], train)
    return plan_training(experiment, slices, length=row.length, vocab_size=0, keep=cache_folder())


def compared(row: Published, plan: Plan) -> dict[str, Any]:
    """Returns the measured speed, its bounds (tokens a second and chip) and its shares of them."""
    chips, tokens = plan.slices.chips, plan.rows * plan.length
    bounds = plan.bounds
    once = bounds.compute * plan.work.flops_causal / plan.flops
    without = max(once, bounds.hbm, bounds.ici, bounds.dcn)
    bound = tokens / chips / bounds.seconds
    least = tokens / chips / without
    return {
        **dataclasses.asdict(row),
        "slices_name": plan.slices.name,
        "fits": plan.fits,
        "hbm_share": round(plan.hbm_share, 3),
        "bounds_seconds": dataclasses.asdict(bounds),
        "bound": round(bound),
        "share": round(row.tokens_per_second_per_chip / bound, 3),
        "bound_nothing_made_again": round(least),
        "share_nothing_made_again": round(row.tokens_per_second_per_chip / least, 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles our steps, compares them and writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a slice's name")
    args = parser.parse_args(arguments)
    found = {}
    if FILE.is_file():
        found = {_key(row): row for row in json.loads(FILE.read_text(encoding="utf-8"))}
    for row in PUBLISHED:
        if args.only in row.topology:
            line = compared(row, compiled(row))
            found[_key(line)] = line
            print(json.dumps(line), flush=True)
    order = [_key(dataclasses.asdict(row)) for row in PUBLISHED]
    artifacts.write_json(FILE, [found[key] for key in order if key in found])
    return 0


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["topology"], row["slices"], row["length"]


if __name__ == "__main__":
    sys.exit(main())
