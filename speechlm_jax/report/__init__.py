"""Reports made from figures, scored items and training logs; imports no model and no training."""
