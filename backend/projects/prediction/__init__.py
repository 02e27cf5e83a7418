"""Predictions: for the task on the screen, for a batch, for a whole project."""
