"""The base of the datasets of clouds."""

import logging

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from projects.point_cloud.point_cloud.data.readers import check_points
from projects.point_cloud.point_cloud.errors import PointCloudError

__all__ = ['PointCloudDataset', 'check_split']


class PointCloudDataset(BaseDataset):
    """Clouds in memory with one label each.

    A subclass gives :meth:`load_clouds`. Every cloud is checked once: coordinates finite, a point
    or more, a label that is a class.

    Args:
        on_bad (str): What becomes of damaged clouds and files: 'refuse' stops and names the
            first few; 'skip' leaves them out and logs the same.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`.
    """

    def __init__(self, on_bad='refuse', **kwargs):
        if on_bad not in ('refuse', 'skip'):
            raise PointCloudError(f"on_bad must be 'refuse' or 'skip', not {on_bad!r}")
        self.on_bad = on_bad
        # The clouds stay outside of what BaseDataset serialises.
        self.clouds, self._bad = [], []
        super().__init__(**kwargs)

    def load_clouds(self):
        """Yield name for messages, points (N, 3) and label of every cloud.

        A file that cannot be read is passed to :meth:`add_bad` instead.
        """
        raise NotImplementedError

    def add_bad(self, reason):
        """Note a damaged cloud: its name and the reason in one line."""
        self._bad.append(reason)

    def load_data_list(self):
        """Read and check all clouds."""
        classes = self.metainfo.get('classes') or ()
        data = []
        for name, points, label in self.load_clouds():
            reason = check_points(points)
            if reason is None and not 0 <= label < len(classes):
                reason = (
                    f'has the label {label}; the {len(classes)} classes end at {len(classes) - 1}'
                )
            if reason:
                self.add_bad(f'{name} {reason}')
                continue
            data.append(dict(cloud=len(self.clouds), gt_label=int(label), name=name))
            self.clouds.append(points)
        self._resolve_bad(len(data))
        return data

    def _resolve_bad(self, good):
        if self._bad:
            listed = '; '.join(self._bad[:5]) + ('; ...' if len(self._bad) > 5 else '')
            total = good + len(self._bad)
            message = f'{len(self._bad)} of {total} clouds are damaged: {listed}'
            if self.on_bad == 'refuse':
                raise PointCloudError(
                    f"{message}.\nReplace or remove them, or leave them out with on_bad='skip'."
                )
            print_log(f'{message}. They are left out.', 'current', logging.WARNING)
        if good == 0:
            raise PointCloudError(
                f'{type(self).__name__} has no clouds in {self.data_root or "it"}'
            )

    def get_data_info(self, idx):
        """Give what the pipeline starts from: ``points`` (N, 3) in float32, and ``gt_label``."""
        info = super().get_data_info(idx)
        info['points'] = np.array(self.clouds[info['cloud']], np.float32)
        return info


def check_split(split):
    """Return the split, or refuse it."""
    if split not in ('train', 'test'):
        raise PointCloudError(f"split must be 'train' or 'test', not {split!r}")
    return split
