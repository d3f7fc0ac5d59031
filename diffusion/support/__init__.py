"""Shared foundations: specs, files, paths, processes, signals, run directories, terminal output."""
