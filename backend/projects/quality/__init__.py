"""Quality on a project's own annotations: what is measured, in which words, and what suits the project."""
