"""A stand-in for ``mmcv._ext`` built on torchvision's operators."""


def install():
    """Make ``mmcv._ext`` importable where mmcv was built without it."""
