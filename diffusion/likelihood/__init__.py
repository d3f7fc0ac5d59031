"""Likelihood: the variational bound term by term, the probability flow, and the ODE solver it uses."""
