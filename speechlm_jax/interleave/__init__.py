"""Plain text to interleaved speech-text documents."""
