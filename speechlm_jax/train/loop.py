"""The one training loop. Its order is a contract: restore, step, log, save, evaluate.

A save precedes an evaluation, so that a run that ends during the evaluation loses no steps. The
next start runs the evaluations that a stop or a crash cut short.

workdir/.owner.json      the process that is training here (see folder_lock.py)
workdir/config.json      the resolved config
workdir/checkpoints/     see checkpoints.py
workdir/metrics.jsonl    one JSON object a line, each with its "step"
workdir/tensorboard/     the same figures as event files
workdir/wandb_id         id of the run at Weights & Biases, if it logs there
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import Stopped, UserError
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.sharding import MeshConfig, make_mesh, row_part, row_shards, to_global
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.train.checkpoint_folder import Keep, Meta
from speechlm_jax.train.checkpoints import CheckpointWriter
from speechlm_jax.train.evaluations import Evaluations
from speechlm_jax.train.goodput import Goodput
from speechlm_jax.train.interval import Interval
from speechlm_jax.train.logs import ScalarLog, info
from speechlm_jax.train.optimizer import OptimizerConfig, check_new
from speechlm_jax.train.prefetch import Prefetch
from speechlm_jax.train.profile import PROFILE, Profile
from speechlm_jax.train.program import make_program
from speechlm_jax.train.run_identity import OPERATIONAL, check_run_identity, decisive
from speechlm_jax.train.signals import StopSignal
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.state import StateConfig, TrainState
from speechlm_jax.train.watchdog import Watchdog
from speechlm_jax.train.work import NOTHING, FlopCount

CONFIG = "config.json"
# Folded into the run's key for the steps. It is large because the key itself draws the weights, and
# split(key)[i] equals fold_in(key, i) for small i.
STEP_STREAM = 2**31
# Identities that another run's weights must share: they define the ids and the codes.
CARRIED_IDENTITY = ("vocabulary", "tokenizer")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
      total_steps: number of updates in the whole run.
      optimizer: the update rule and its learning rate.
      mesh: the devices' mesh, which says how they share the work.
      seed: seed of the initial weights and of all randomness in the steps.
      num_microbatches: number of parts into which each batch is split to save memory.
      log_every_steps: updates between lines of the log.
      save_every_steps: updates between checkpoints; the last step is always saved.
      keep_last, keep_every_steps, keep_every_hours: rules for checkpoints that stay; see `Keep`.
      init_from: workdir or checkpoint of another run whose weights this one starts with; it is read
        only when this run has no checkpoint of its own.
      state: the parameters that are trained, and what is kept beside them.
      max_skipped_steps: number of skipped updates in a row that ends the run.
      profile_steps: first and last step of a profile, written to workdir/profile; (0, 0): none.
      hang_seconds: seconds without a finished step or part of an evaluation before the stacks of
        all threads are written to standard error; on several hosts the run then ends. 0: never.
      wandb_project: project at Weights & Biases to log to as well (extra `wandb`); empty: none.
    """

    total_steps: int
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    num_microbatches: int = 1
    log_every_steps: int = 20
    save_every_steps: int = 500
    keep_last: int = 2
    keep_every_steps: int = 0
    keep_every_hours: float = 0.0
    init_from: str | None = None
    state: StateConfig = StateConfig()
    max_skipped_steps: int = 100
    profile_steps: tuple[int, int] = (0, 0)
    wandb_project: str = ""
    hang_seconds: float = 1800.0

    def __post_init__(self) -> None:
        steps = ("num_microbatches", "log_every_steps", "save_every_steps", "keep_last")
        configs.at_least(self, 1, *steps, "max_skipped_steps")
        configs.at_least(self, 0, "total_steps", "keep_every_steps", "keep_every_hours")
        configs.at_least(self, 0, "hang_seconds")
        configs.at_least(self, 0, "seed", most=2**32 - 1)
        first, last = self.profile_steps
        if not (first == last == 0 or 1 <= first <= last):
            raise UserError(f"profile_steps: {first}, {last}; give the first and the last step")


def fit(
    stage: Stage,
    config: TrainConfig,
    workdir: str | Path,
    *,
    resolved: Any = None,
    operational: Mapping[str, frozenset[str]] = OPERATIONAL,
) -> TrainState:
    """Trains a stage to `config.total_steps` and returns its state.

    If the workdir holds checkpoints, the run resumes from the newest undamaged one and ends in the
    same state, bit for bit, as one that was never interrupted. A finished run returns its state
    without training.

    Args:
      resolved: the config of the whole experiment, saved with the checkpoints and compared on
        resuming; by default `config`.
      operational: by class name, the fields in `resolved` that may differ when a run resumes.

    Raises:
      Stopped: SIGINT or SIGTERM came; the state is saved.
      UserError: the workdir holds another run, another process trains in it, the batches ran out,
        or a batch does not divide.
    """
    configs.at_least(config, 1, "total_steps")
    resolved = config if resolved is None else resolved
    return _Run(stage, config, Path(workdir), resolved, operational).fit()


class _Run:
    """One call of `fit`: its parts that do not change between steps, and its clocks."""

    def __init__(
        self,
        stage: Stage,
        config: TrainConfig,
        workdir: Path,
        resolved: Any,
        operational: Mapping[str, frozenset[str]],
    ):
        self.stage, self.config, self.workdir = stage, config, workdir
        self.resolved, self.operational = resolved, operational
        self.fingerprint = configs.fingerprint(
            decisive(configs.to_json(resolved, whole=False), operational)
        )
        self.mesh: Mesh = make_mesh(config.mesh)
        self.program = make_program(
            stage,
            self.mesh,
            optimizer=config.optimizer,
            total_steps=config.total_steps,
            num_microbatches=config.num_microbatches,
            state=config.state,
        )
        self.row_parts = row_part(self.mesh).count
        self.lock = FolderLock(workdir, mine=jax.process_index() == 0)
        self.watchdog = Watchdog(config.hang_seconds, end=jax.process_count() > 1)
        self.rows_seen = 0
        self.timing = {"wall_seconds": 0.0, "cpu_seconds": 0.0}
        self.goodput = Goodput()
        self.started = (time.perf_counter(), time.process_time())

    def fit(self) -> TrainState:
        with self.lock, jax.set_mesh(self.mesh), StopSignal() as stop, self.watchdog:
            began = time.perf_counter()
            state, step = self.restore()
            self.goodput = Goodput(self.timing)
            self.goodput.add("start", time.perf_counter() - began)
            evaluations = Evaluations(
                self.stage,
                self.workdir,
                total_steps=self.config.total_steps,
                alive=self.watchdog.alive,
                goodput=self.goodput,
            )
            if jax.process_index() == 0:
                for name, data in self.stage.files.items():
                    artifacts.write_bytes(self.workdir / name, data)
            missed = evaluations.missed(step)
            if step >= self.config.total_steps and not missed:
                return state
            if jax.process_index() == 0:
                artifacts.write_json(self.workdir / CONFIG, configs.to_json(self.resolved))
            writer = CheckpointWriter(
                self.workdir,
                keep=Keep(
                    self.config.keep_last,
                    self.config.keep_every_steps,
                    self.config.keep_every_hours,
                ),
                confirm=self.lock.confirm,
            )
            log = ScalarLog(
                self.workdir,
                after_step=step,
                wandb_project=self.config.wandb_project,
                config=configs.to_json(self.resolved),
            )
            try:
                writer.set_aside_after(step)
                evaluations.run(missed, state, step, log)
                if step < self.config.total_steps:
                    state = self.loop(state, step, writer, log, stop, evaluations)
            finally:
                log.close()
                writer.close()
            if stop.asked:  # after the last step: the caller must not start what comes next
                raise Stopped(f"{self.stage.name}: finished and saved")
            return state

    def restore(self) -> tuple[TrainState, int]:
        """Returns the state to start from, and its step.

        It is this run's newest undamaged checkpoint, or step 0 with another run's or fresh weights.
        """
        folder = checkpoints.latest_good(self.workdir)
        if folder is not None:
            meta = checkpoint_folder.read_meta(folder)
            check_run_identity(folder, meta, self.stage, self.resolved, self.operational)
            self.rows_seen, self.timing = meta.rows_seen, dict(meta.timing)
            info(
                "%s: going on from step %d of %d",
                self.stage.name,
                meta.step,
                self.config.total_steps,
            )
            return checkpoints.restore(folder, self.program.layout.abstract), meta.step
        check_new(self.config.optimizer, self.config.total_steps)
        state = self.program.init(self.config.seed)
        if self.config.init_from is not None:
            abstract = self.program.layout.abstract
            weights = checkpoints.restore_weights(self.config.init_from, abstract)
            self._check_carried(weights.meta)
            state = state.starting_from(weights.params, weights.variables)
            info(
                "%s: weights of %s, step %d",
                self.stage.name,
                self.config.init_from,
                weights.meta.step,
            )
        return state, 0

    def loop(
        self,
        state: TrainState,
        done: int,
        writer: CheckpointWriter,
        log: ScalarLog,
        stop: StopSignal,
        evaluations: Evaluations,
    ) -> TrainState:
        """Runs the steps. Keep the order: log before the save, save before the evaluation."""
        config = self.config
        key = jax.random.fold_in(jax.random.key(config.seed), STEP_STREAM)
        interval = Interval(
            config.total_steps,
            self.stage.name,
            max_skipped=config.max_skipped_steps,
            chips=self.mesh.size,
            kind=self.mesh.devices.flat[0].device_kind,
        )
        metrics = None
        profile = Profile(self.workdir / PROFILE, *config.profile_steps)
        with Prefetch(iter(self.stage.batches(self.rows_seen))) as batches, profile:
            for step in range(done + 1, config.total_steps + 1):
                profile.before(step)
                batch = self._next(batches, step, metrics)
                state, metrics = self._step(state, batch, key, metrics)
                rows = _rows(batch) * self.row_parts
                self.rows_seen += rows
                interval.add(metrics, rows, self._work(batch))
                interval.lap()
                self.watchdog.alive()
                self.lock.check()
                last = step == config.total_steps
                stopping = stop.should_stop(step)
                if step % config.log_every_steps == 0 or last:
                    with self.goodput.of("step"):
                        figures = interval.close(step)
                    if self.stage.progress is not None:
                        figures |= self.stage.progress(self.rows_seen)
                    log.write(step, figures | self.goodput.shares())
                if step % config.save_every_steps == 0 or last or stopping:
                    with self.goodput.of("checkpoint"):
                        writer.save(state, self._meta(step))
                        if last or stopping:
                            writer.finish()
                writer.check()
                if stopping:
                    raise Stopped(
                        f"{self.stage.name}: saved at step {step} of {config.total_steps}"
                    )
                interval.leave_out(evaluations.run(evaluations.due(step), state, step, log))
        return state

    def _step(self, state: TrainState, batch: Any, key: Any, before: Any) -> Any:
        """Starts a step and waits for the previous one, so that one runs and one is queued."""
        with self.goodput.of("step" if before is not None else "compile"):
            result = self.program.step(state, to_global(batch, mesh=self.mesh), key)
            jax.block_until_ready(result[1] if before is None else before)
        return result

    def _work(self, batch: Mapping[str, np.ndarray]) -> FlopCount:
        """Returns the work of all hosts, estimated from this host's batch."""
        return self.stage.work(batch).times(self.row_parts) if self.stage.work else NOTHING

    def _next(
        self, batches: Prefetch[dict[str, np.ndarray]], step: int, running: Any
    ) -> dict[str, np.ndarray]:
        """Returns the next batch; the wait counts as input time unless the device was busy."""
        began = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            raise UserError(
                f"{self.stage.name}: the batches ended before step {step} of "
                f"{self.config.total_steps}; lower total_steps or give more data"
            ) from None
        busy = running is not None and not all(x.is_ready() for x in jax.tree.leaves(running))
        self.goodput.add("step" if busy else "input", time.perf_counter() - began)
        shards = row_shards(self.mesh)
        rows, parts = _rows(batch) * self.row_parts, shards * self.config.num_microbatches
        if rows % parts:
            raise UserError(
                f"{self.stage.name}: a batch of {rows} rows does not divide into "
                f"{self.config.num_microbatches} parts over {shards} devices (replica x fsdp)"
            )
        return batch

    def _meta(self, step: int) -> Meta:
        wall, cpu = self.started
        return Meta(
            stage=self.stage.name,
            step=step,
            rows_seen=self.rows_seen,
            identity=dict(self.stage.identity),
            described=dict(self.stage.described),
            config=configs.to_json(self.resolved),
            fingerprint=self.fingerprint,
            timing={
                **self.goodput.seconds,
                "wall_seconds": self.timing["wall_seconds"] + time.perf_counter() - wall,
                "cpu_seconds": self.timing["cpu_seconds"] + time.process_time() - cpu,
            },
        )

    def _check_carried(self, meta: Meta) -> None:
        for name in CARRIED_IDENTITY:
            mine, theirs = self.stage.identity.get(name), meta.identity.get(name)
            if mine is not None and theirs is not None and mine != theirs:
                raise UserError(
                    f"init_from={self.config.init_from}: has {name} {theirs}, this run has {mine}"
                )


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))
