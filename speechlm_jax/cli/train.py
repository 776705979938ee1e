"""`speechlm train`: one training run from a config file."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, bucket, shipped
from speechlm_jax.cli import options
from speechlm_jax.data.bucket_rows import DISK_GB
from speechlm_jax.errors import EXIT_OK
from speechlm_jax.experiment import training
from speechlm_jax.train import cluster
from speechlm_jax.train.cluster import ClusterConfig

DETAILS = """\
The config is a Python file, yours or one that ships; overrides change its fields. A folder that
holds a checkpoint of the same run is continued. SIGINT and SIGTERM save and exit with code 75."""
EXAMPLE = """\
speechlm train configs/speech_tokenizer_digits.py
speechlm train my_config.py total_steps=200 optimizer.peak=1e-3 --workdir runs/short
speechlm train my_config.py data.mixture=gs://my-bucket/data/mix.mixture.json --disk-gb 50
speechlm train my_config.py --workdir /mnt/shared/lm --hosts 4 --host 1 --coordinator h0:8476"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "train", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("config", metavar="CONFIG", help="a config file")
    parser.add_argument(
        "overrides",
        metavar="field=value",
        nargs="*",
        help="a field of the config and its value as JSON, e.g. seed=1",
    )
    parser.set_defaults(more="overrides")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        help="folder of the run: checkpoints, logs (default: runs/NAME_OF_CONFIG)",
    )
    parser.add_argument(
        "--disk-gb", metavar="GB", type=float,
        help="of rows in a bucket (data.mixture=gs://...), what each host may keep on its disk "
        f"(default: {DISK_GB:g})",
    )  # fmt: skip
    hosts = parser.add_argument_group("several hosts (the same command on each)")
    hosts.add_argument(
        "--hosts", metavar="N", type=int, default=1,
        help="how many; 0 asks the machine: Cloud TPU, Slurm (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument("--host", metavar="I", type=int, default=0, help="which of them this is")
    hosts.add_argument(
        "--coordinator", metavar="HOST:PORT", default=ClusterConfig.coordinator,
        help="address of host 0 (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument(
        "--start-seconds", metavar="S", type=int, default=ClusterConfig.start_seconds,
        help="how long hosts wait for each other (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument(
        "--heartbeat-seconds", metavar="S", type=int, default=ClusterConfig.heartbeat_seconds,
        help="after which a silent host is dead, and all others end (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains until the config's last step."""
    config = shipped.find(args.config)
    overrides = [*args.overrides]
    if args.disk_gb is not None:
        overrides.append(f"data.disk_gb={args.disk_gb}")
    if args.workdir:
        bucket.require_folder(args.workdir, "--workdir")
    workdir = args.workdir or Path("runs") / config.stem
    joined = cluster.join(
        ClusterConfig(
            args.hosts,
            args.host,
            args.coordinator,
            args.start_seconds,
            args.heartbeat_seconds,
            run=f"{artifacts.sha256_file(config)} {workdir.name}",
        )  # fmt: skip
    )
    with joined:
        training.train(config, overrides=overrides, workdir=workdir)
    return EXIT_OK
