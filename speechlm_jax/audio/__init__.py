"""Samples <-> mel frames, recordings, eSpeak NG voices; imports no JAX: workers fork."""
