"""Blocks of items as shards, made by several processes, and joined to the prepared folder."""
