"""Suites: what is asked of a trained model, and the scored items that its answers give."""
