"""The error of this project: the tools print its text without a traceback."""

from coc_mm.errors import UserError

__all__ = ['PointCloudError']


class PointCloudError(UserError, ValueError):
    """A cloud, file, dataset or setting that cannot be used."""
