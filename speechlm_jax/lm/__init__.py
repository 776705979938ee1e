"""Ids -> logits: the speech-text language model, its training and its inference."""
