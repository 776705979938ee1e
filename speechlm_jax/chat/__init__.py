"""Spoken dialogue: a question in codes, a reply in text and codes."""
