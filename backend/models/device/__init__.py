"""Where tensors live and run: placement, transfers, CUDA graphs."""
