"""Judging: which extractor judges a data set, figures of a setting, sweeps over settings."""
