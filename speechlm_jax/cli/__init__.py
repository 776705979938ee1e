"""The console script `speechlm`: a module per sub-command reads its arguments, calls a verb."""
