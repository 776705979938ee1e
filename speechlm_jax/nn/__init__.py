"""Layers of every model, in Flax NNX used functionally: attention, transformer, decoding."""
