"""Propagations: a whole project predicted in the background."""
