"""Likelihood: the variational bound term by term, and the exact likelihood of the probability flow ODE."""
