"""Data sets and metrics: how good the masks are."""
