"""Training: the LightningModules, their callbacks, and the lifecycle of a run."""
