"""What training minimises: the objective, the weight of each level, the cost of an error, the pairing of noise."""
