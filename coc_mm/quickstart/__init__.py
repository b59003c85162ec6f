"""The quickstart: train and test a classifier, a detector and a segmentor on embedded data."""

#: Names of the tasks, in their order; the latter two start from the first.
TASK_NAMES = ('classification', 'detection', 'segmentation')
