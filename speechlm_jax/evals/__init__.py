"""Evaluation: scored items -> figures with intervals; models come in as callables."""
