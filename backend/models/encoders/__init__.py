"""Encoders: an image becomes a feature map."""
