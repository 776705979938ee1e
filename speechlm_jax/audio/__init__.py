"""Samples <-> mel frames, recordings from disk, and eSpeak NG voices; imports no JAX, so that workers may fork."""
