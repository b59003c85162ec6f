"""Clouds: files, datasets and transforms."""

from projects.point_cloud.point_cloud.data.digit_points import DigitPoints
from projects.point_cloud.point_cloud.data.folder import PointFolder
from projects.point_cloud.point_cloud.data.h5 import read_h5
from projects.point_cloud.point_cloud.data.readers import read_points
from projects.point_cloud.point_cloud.data.scans import ModelNet40, ScanObjectNN
from projects.point_cloud.point_cloud.data.solids import SyntheticSolids
from projects.point_cloud.point_cloud.data.transforms import (
    CenterPoints,
    JitterPoints,
    PackPoints,
    RotatePoints,
    SamplePoints,
    ScaleShiftPoints,
    VotePoints,
)

__all__ = [
    'CenterPoints',
    'DigitPoints',
    'JitterPoints',
    'ModelNet40',
    'PackPoints',
    'PointFolder',
    'RotatePoints',
    'SamplePoints',
    'ScaleShiftPoints',
    'ScanObjectNN',
    'SyntheticSolids',
    'VotePoints',
    'read_h5',
    'read_points',
]
