"""Bundles: trained models that belong together; each is loaded when it is first used."""
