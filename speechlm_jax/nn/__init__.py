"""Layers of every model, in Flax NNX used functionally: parameters, attention, transformer, decoding."""
