"""Plans a training step: compiles it for absent TPUs, and reads what it needs and sends."""
