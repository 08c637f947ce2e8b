"""``python -m planner``: the planner's commands alone."""

from planner.cli import app

app(prog_name="python -m planner")
