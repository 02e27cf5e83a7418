"""Names of the networks of SAM, without any of them."""

SAM_MODELS = ("mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h")
"""Networks of segment-anything and mobile_sam, see `networks.build_sam`."""
SAM2_NAMES = ("sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large")
"""Networks of sam2, see `sam2_networks.SAM2_MODELS`."""
SAM_BY_OPENVINO = frozenset({"mobile_sam"})
"""Of these, networks whose image encoder OpenVINO runs on a processor. Others take a quarter of a minute to convert."""
