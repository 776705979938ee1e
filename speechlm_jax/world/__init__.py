"""A closed world: people, facts, and every text about them."""
