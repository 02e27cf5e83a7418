"""The use cases of one Label Studio project."""
