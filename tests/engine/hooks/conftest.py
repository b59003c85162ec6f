"""Tools called in the process, and tiny projects for them."""

from tool_fixtures import *  # noqa: F403
