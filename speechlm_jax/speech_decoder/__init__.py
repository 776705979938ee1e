"""Codes -> wav: flow matching from codes to mel frames, and from mel frames to samples."""
