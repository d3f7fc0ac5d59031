"""The training loss: the objective, the weights of noise levels, the distances and the pairing of noise."""
