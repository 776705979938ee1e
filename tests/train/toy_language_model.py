"""A tiny language model on synthetic rows of two tasks, with held-out loss by task."""

import dataclasses
from functools import partial

from speechlm_jax.lm.bench import BenchConfig, synthetic_rows
from speechlm_jax.lm.presets import preset
from speechlm_jax.lm.stage import make_stage
from speechlm_jax.sharding import MeshConfig, RowPart, make_mesh
from speechlm_jax.train.held_out import HeldOutRows, held_out
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.vocab import Vocab

ROWS, LENGTH, VOCAB = 4, 64, 256
TASKS = ("first", "second")
CONFIG = TrainConfig(
    total_steps=2,
    optimizer=OptimizerConfig(warmup_steps=1),
    mesh=MeshConfig(fsdp=2, tensor=2),
    log_every_steps=1,
    save_every_steps=2,
)


def batch_of(seed):
    rows = synthetic_rows(BenchConfig(rows=ROWS, length=LENGTH, seed=seed), VOCAB)
    rows["loss_mask"][:, : LENGTH // 4] = 0.0
    rows["task"][seed % ROWS :] = 1
    return rows


def make_language_model(part: RowPart):
    """The stage of a host that reads this part of each batch."""
    mine = slice(part.index * ROWS // part.count, (part.index + 1) * ROWS // part.count)

    def batches(rows_seen):
        while True:
            yield {name: rows[mine] for name, rows in batch_of(rows_seen // ROWS).items()}
            rows_seen += ROWS

    def unseen(task):
        rows = batch_of(10**6 + task)
        rows["task"][:] = task
        yield {name: values[mine] for name, values in rows.items()}

    model = preset("tiny", vocab_size=VOCAB, dtype="float32", remat="none")
    vocab = Vocab(VOCAB // 2, VOCAB // 4, 12.5, "none", "none", num_spare=0)
    stage = make_stage(model, vocab, TASKS, batches)
    rows = {name: HeldOutRows(ROWS, partial(unseen, task)) for task, name in enumerate(TASKS)}
    evaluation = held_out(
        stage.loss, rows, every_steps=2, mesh=make_mesh(CONFIG.mesh), num_microbatches=2
    )
    return dataclasses.replace(stage, evals=(evaluation,))
