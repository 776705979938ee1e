"""Suites: a trained model -> scored items of its answers to the questions of an evaluation."""
