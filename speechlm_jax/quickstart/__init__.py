"""The whole chain as resumable steps: corpora, training, evaluation, chat and the report."""
