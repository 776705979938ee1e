"""Speech -> codes: the supervised Whisper-VQ speech tokenizer, its training and its streaming."""
