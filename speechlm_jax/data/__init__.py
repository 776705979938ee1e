"""Documents to rows and rows to batches: SeqIO declares, a job prepares, Grain reads."""
