"""Interfaces of other programs on this project's core: their programs run with another import line."""
