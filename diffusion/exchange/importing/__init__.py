"""Published checkpoints become runs of this project."""
