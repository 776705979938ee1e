"""Whether a training step fits: it is compiled for TPUs that are not there, and read."""
