"""Bundles: trained models that belong together, opened when they are first asked for."""
