"""What a user reads: counts, advice, a page and a contact sheet."""
