"""Pages made from figures, scored items and training logs; knows no model and no training."""
