"""Turns plain text into interleaved speech-text documents."""
