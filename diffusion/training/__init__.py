"""Training: the LightningModules, their callbacks, and the life of a run."""
