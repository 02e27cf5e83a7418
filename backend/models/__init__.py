"""Encoder, segmenter, weights: the only places that know timm and the segmentation packages."""
