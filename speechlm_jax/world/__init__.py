"""A closed world: people, facts, and every text that is told about them."""
