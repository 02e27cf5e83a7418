"""The mathematics: types, patch grid, matching, prompts, masks.

Knows torch, numpy and solvers (scipy, OpenCV, scikit-image, POT), no models.
"""
