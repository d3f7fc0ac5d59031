"""The race: quality of samples at equal training time, beside other packages. See `__main__`."""
