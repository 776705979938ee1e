"""`speechlm train`: one training run from a config file."""

import argparse
import os
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, bucket, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.cli.fields import config_to_fields
from speechlm_jax.cli.later import later
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.train.cluster_config import ClusterConfig

experiments = later("speechlm_jax.experiment.configs")
training = later("speechlm_jax.experiment.training")
cluster = later("speechlm_jax.train.cluster")

DETAILS = """\
The config is a Python file, yours or one that ships; overrides change its fields. A folder that
holds a checkpoint of the same run is continued. SIGINT and SIGTERM save and exit with code 75."""
EXAMPLE = """\
speechlm train configs/speech_tokenizer_digits.py
speechlm train configs/lm_150m.py --show
speechlm train my_config.py train.total_steps=200 train.optimizer.peak=1e-3 --workdir runs/short
speechlm train my_config.py data.mixture=gs://my-bucket/data/mix.mixture.json --disk-gb 50
speechlm train my_config.py --workdir /mnt/shared/lm --hosts 4 --host 1 --coordinator h0:8476"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "train", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("config", metavar="CONFIG", help=options.CONFIG)
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
        type=options.place,
        help="folder of the run: checkpoints, logs (default: runs/NAME_OF_CONFIG)",
    )
    parser.add_argument(
        "--disk-gb", metavar="GB", type=options.real(0.0, 1e9),
        help="of rows in a bucket (data.mixture=gs://...), what each host may keep on its disk "
        f"(default: {bucket.DISK_GB:g})",
    )  # fmt: skip
    parser.add_argument(
        "--show", action="store_true",
        help="print every field of the config, after overrides, with its meaning; start nothing",
    )  # fmt: skip
    hosts = parser.add_argument_group("several hosts (the same command on each)")
    hosts.add_argument(
        "--hosts", metavar="N", type=options.whole(0), default=1,
        help="how many; 0 asks the machine: Cloud TPU, Slurm (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument("--host", metavar="I", type=options.whole(0), default=0,
        help="which of them this is",
    )  # fmt: skip
    hosts.add_argument(
        "--coordinator", metavar="HOST:PORT", default=ClusterConfig.coordinator,
        help="address of host 0 (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument(
        "--start-seconds", metavar="S", type=options.positive, default=ClusterConfig.start_seconds,
        help="how long hosts wait for each other (default: %(default)s)",
    )  # fmt: skip
    hosts.add_argument(
        "--heartbeat-seconds", metavar="S", type=options.positive,
        default=ClusterConfig.heartbeat_seconds,
        help="after which a silent host is dead, and all others end (default: %(default)s)",
    )  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the config does not exist, or hosts or the folder are not valid."""
    shipped.find(args.config)
    _hosts(args)
    if args.workdir:
        bucket.require_folder(args.workdir, "--workdir")
        if os.path.lexists(args.workdir) and not os.path.isdir(args.workdir):
            raise UserError(f"--workdir {args.workdir}: is a file; name a folder")


def run(args: argparse.Namespace) -> int:
    """Trains until the config's last step, or with `--show` prints the config."""
    config = shipped.find(args.config)
    overrides = [*args.overrides]
    if args.disk_gb is not None:
        overrides.append(f"data.disk_gb={args.disk_gb}")
    if args.show:
        config = configs.override(experiments.load_experiment(config), overrides)
        print(*config_to_fields(config), sep="\n")
        return EXIT_OK
    workdir = args.workdir or Path("runs") / config.stem
    with cluster.join(_hosts(args, run=f"{artifacts.sha256_file(config)} {workdir.name}")):
        training.train(config, overrides=overrides, workdir=workdir)
    return EXIT_OK


def _hosts(args: argparse.Namespace, run: str = "") -> ClusterConfig:
    return ClusterConfig(
        args.hosts,
        args.host,
        args.coordinator,
        args.start_seconds,
        args.heartbeat_seconds,
        run=run,
    )
