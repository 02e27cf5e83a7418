"""What Label Studio speaks: label configs, regions, image addresses, its API."""
