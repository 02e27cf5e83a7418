"""Weights files: catalogue, download, checks, store, reading."""
