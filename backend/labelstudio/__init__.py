"""Label Studio's formats and protocols: label configs, regions, image addresses, its API."""
