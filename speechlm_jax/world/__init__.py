"""The closed world of the quickstart: people, facts, and every text that is told about them."""
