"""Models leave and arrive: export to other programs' formats."""
