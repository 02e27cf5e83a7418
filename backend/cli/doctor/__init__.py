"""The `doctor` command: checks of settings, models, store, queue, Label Studio and one project."""
