"""The console script `speechlm`: one module a sub-command, which parses arguments, calls a verb."""
