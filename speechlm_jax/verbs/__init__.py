"""What the command line does with a run's models: one verb a file, which gives a JSON object."""
