"""Functions behind the commands that use a run's models: one a file, which returns JSON data."""
