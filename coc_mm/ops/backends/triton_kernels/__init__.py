"""CUDA kernels of the context-cluster operator, imported at their first launch.

``tiles`` holds what the kernels share, ``passes`` the passes over the points of a region,
``launch`` what is allocated and which kernels run. Each pass exists once, as a device
function: a region that one program can serve is done by one kernel that calls the passes one after
another (its points then come from the cache after the first pass), a larger one by a kernel per
pass with the points split among programs. Sums have a fixed order in both, nothing is added
atomically, and what is compiled follows from shapes and dtype alone: equal values give equal bits,
whatever their strides.
"""
