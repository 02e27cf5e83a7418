"""Softmatcher for Label Studio: one scribble becomes brush masks on the other tasks."""

__version__ = "0.2.0"
