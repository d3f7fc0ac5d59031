"""Preparing images of any kind for training: from a source to a folder of shards, labels, captions and a report."""
