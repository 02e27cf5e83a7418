"""A folder of images in place of Label Studio: tasks, annotations and predictions are files."""
