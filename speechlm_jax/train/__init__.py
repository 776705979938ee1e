"""The training loop that knows no model: stages, state, step, checkpoints, logs, signals."""
