"""What is read: folders, archives, tables and arrays, as one list of items."""
