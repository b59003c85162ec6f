"""The error of this project: about what the user gave, so that the tools print its text alone."""

from coc_mm.errors import UserError

__all__ = ['PointCloudError']


class PointCloudError(UserError, ValueError):
    """A cloud, file, dataset or setting that cannot be used.

    Args:
        message (str): One or two lines: what, where, the way out.
    """
