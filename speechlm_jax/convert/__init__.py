"""Import and export of released weights. No other room uses their names."""
