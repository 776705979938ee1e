"""Other people's weights, in and out. Nothing outside this room knows their names."""
