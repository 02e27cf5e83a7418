"""The `demo` command: a Label Studio of its own, sample projects, and the main job run for real."""
