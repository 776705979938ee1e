"""Codes -> wav: flow matching from codes to mel frames, and Griffin-Lim from these to samples."""
