"""`python -m backend`: the command line."""

from backend.cli import app

app(prog_name="python -m backend")
