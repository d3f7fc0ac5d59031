"""Models leave for other programs, and arrive from them."""
