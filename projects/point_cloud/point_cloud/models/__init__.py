"""PointMLP with context clusters."""

from projects.point_cloud.point_cloud.models.classifier import PointMLPCoC
from projects.point_cloud.point_cloud.models.preprocessor import PointDataPreprocessor
from projects.point_cloud.point_cloud.models.voting import VoteModel

__all__ = ['PointDataPreprocessor', 'PointMLPCoC', 'VoteModel']
