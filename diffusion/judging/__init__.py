"""Evaluation: the extractor for a data set, figures of a setting, sweeps over settings, likelihoods."""
