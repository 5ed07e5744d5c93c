"""Decoding: attention contexts, caches, updates of some tokens only."""
