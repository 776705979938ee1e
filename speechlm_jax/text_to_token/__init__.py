"""Text -> codes: the text-to-token model, its training and its batched sampling."""
