"""Processes of this program: supervision, signals, orphans, logs, the gunicorn worker."""
