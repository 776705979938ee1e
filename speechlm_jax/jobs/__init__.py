"""Corpus jobs as deterministic shard tasks that survive a crash at any moment."""
