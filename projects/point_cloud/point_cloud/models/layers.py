"""The layers of PointMLP on channels-last tensors (..., C), under the names of the original.

The original moves channels to the front for its convolutions of length one; here they are
matrix products on points.
"""

import functools
import os

import torch
import torch.nn.functional as F
from torch import nn

from coc_mm.ops import assign_points, context_cluster
from projects.point_cloud.point_cloud.errors import PointCloudError
from projects.point_cloud.point_cloud.ops import (
    farthest_point_sample,
    gather_points,
    nearest_neighbours,
)

ACTIVATIONS = {
    'relu': nn.ReLU,
    'gelu': nn.GELU,
    'rrelu': nn.RReLU,
    'selu': nn.SELU,
    'silu': nn.SiLU,
    'hardswish': nn.Hardswish,
    'leakyrelu': nn.LeakyReLU,
    'leakyrelu0.2': functools.partial(nn.LeakyReLU, 0.2),
}


def activation_layer(name):
    """Build an activation by one of the names of :data:`ACTIVATIONS`, in any case."""
    if str(name).lower() not in ACTIVATIONS:
        raise PointCloudError(f'unknown activation {name!r}: choose one of {sorted(ACTIVATIONS)}')
    return ACTIVATIONS[str(name).lower()]()


class Pointwise(nn.Conv1d):
    """A convolution of length one as a matrix product on points."""

    def __init__(self, in_channels, out_channels, groups=1, bias=True):
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=bias)

    def forward(self, x):
        """Map points (P, in_channels) to (P, out_channels)."""
        if self.groups > 1:
            return super().forward(x.unsqueeze(-1)).squeeze(-1)
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class PointwiseNormAct(nn.Module):
    """Pointwise map, batch norm, activation.

    Args:
        in_channels (int): Channels of a point.
        out_channels (int): Channels after it.
        bias (bool): Defaults to True.
        activation (str): Defaults to 'relu'.
    """

    def __init__(self, in_channels, out_channels, bias=True, activation='relu'):
        super().__init__()
        self.net = nn.Sequential(
            Pointwise(in_channels, out_channels, bias=bias),
            nn.BatchNorm1d(out_channels),
            activation_layer(activation),
        )

    def forward(self, x):
        """Map points (P, in_channels) to (P, out_channels)."""
        return self.net(x)

    def forward_pair(self, own, shared):
        """Map points whose last channels are common to a group, without repeating these.

        Args:
            own (Tensor): (G, K, C1).
            shared (Tensor): (G, C2), C1 + C2 the input channels.

        Returns:
            Tensor: (G, K, out_channels).
        """
        weight = self.net[0].weight.squeeze(-1)
        split = own.shape[-1]
        x = F.linear(own, weight[:, :split])
        x = x + F.linear(shared, weight[:, split:], self.net[0].bias).unsqueeze(1)
        return self.net[2](self.net[1](x.flatten(0, 1))).view_as(x)


class ResidualPointwise(nn.Module):
    """Two pointwise maps around a residual connection (three if grouped).

    Args:
        channels (int): Channels of a point.
        groups (int): Groups of channels.
        res_expansion (float): Hidden over outer channels.
        bias (bool): In front of batch norms.
        activation (str): One of :data:`ACTIVATIONS`.
    """

    def __init__(self, channels, groups=1, res_expansion=1.0, bias=True, activation='relu'):
        super().__init__()
        hidden = int(channels * res_expansion)
        self.act = activation_layer(activation)
        self.net1 = nn.Sequential(
            Pointwise(channels, hidden, groups, bias),
            nn.BatchNorm1d(hidden),
            activation_layer(activation),
        )
        layers = [Pointwise(hidden, channels, groups, bias), nn.BatchNorm1d(channels)]
        if groups > 1:
            layers += [
                activation_layer(activation),
                Pointwise(channels, channels, bias=bias),
                nn.BatchNorm1d(channels),
            ]
        self.net2 = nn.Sequential(*layers)

    def forward(self, x):
        """Map points (..., channels) to the same shape."""
        flat = x.reshape(-1, x.shape[-1])
        return self.act(self.net2(self.net1(flat)) + flat).view_as(x)


class GroupCluster(nn.Module):
    """One context cluster per group of neighbors, with a residual connection.

    The operator of the images, :func:`coc_mm.ops.context_cluster`, on maps of one row with one
    center: a group is a map, its neighbors are the points.

    Args:
        channels (int): Channels of a point.
        heads (int): Heads, E.
        head_dim (int | None): Channels of a head, D; None: a quarter of ``channels``, 32 or more.
        backend (str | None): The operator's backend; None: the fastest.
    """

    def __init__(self, channels, heads=1, head_dim=None, backend=None):
        super().__init__()
        head_dim = max(channels // 4, 32) if head_dim is None else head_dim
        self.heads, self.head_dim, self.backend = heads, head_dim, backend
        self.fc1 = nn.Linear(channels, heads * head_dim)
        self.fc2 = nn.Linear(heads * head_dim, channels)
        self.fc_v = nn.Linear(channels, heads * head_dim)
        self.sim_alpha = nn.Parameter(torch.ones(1))
        self.sim_beta = nn.Parameter(torch.zeros(1))

    def _as_map(self, x):
        return x.unflatten(-1, (self.heads, self.head_dim)).unsqueeze(1)  # (G, 1, K, E, D)

    def _backend(self, x):
        if self.backend or torch.is_grad_enabled() or x.is_cuda or 'COC_MM_BACKEND' in os.environ:
            return self.backend
        # With one center the broadcast form holds nothing larger than the points, and on a CPU
        # it is the fastest: products of one row each are not.
        return 'reference'

    def forward(self, x):
        """Mix the points of every group: (G, K, channels) to the same shape."""
        mixed = context_cluster(
            self._as_map(self.fc1(x)),
            self._as_map(self.fc_v(x)),
            self.sim_alpha,
            self.sim_beta,
            proposals=(1, 1),
            backend=self._backend(x),
        )
        return x + self.fc2(mixed.flatten(-2).squeeze(1))

    def similarity(self, x):
        """Map points (G, K, channels) to similarities to their group's center (G, K)."""
        features = self._as_map(self.fc1(x))
        similarity = assign_points(features, self.sim_alpha, self.sim_beta, proposals=(1, 1))[2]
        return similarity.squeeze(1).mean(-1)


class LocalGrouper(nn.Module):
    """Sample centers, gather their neighbors, normalize them ("geometric affine").

    PointMLP, `arXiv 2202.07123 <https://arxiv.org/abs/2202.07123>`_, section 3.2.

    Args:
        channels (int): Channels of a point, C.
        centers (int): Centers, S.
        neighbours (int): Neighbors per center, K.
        use_xyz (bool): Append the coordinates to the features.
        normalize (str | None): 'anchor' subtracts the center's features, 'center' the mean of
            the group; both divide by the standard deviation over the cloud. None leaves features
            as they are.
        start (int | str): First sampled point, an index or 'random'.
        backend (str | None): Of sampling and search; None: the fastest.
    """

    def __init__(
        self,
        channels,
        centers,
        neighbours,
        use_xyz=True,
        normalize='anchor',
        start=0,
        backend=None,
    ):
        super().__init__()
        if normalize not in ('anchor', 'center', None):
            raise PointCloudError(
                f"normalize must be 'anchor', 'center' or None, not {normalize!r}"
            )
        self.centers, self.neighbours = centers, neighbours
        self.use_xyz, self.normalize = use_xyz, normalize
        self.start, self.backend = start, backend
        self.channels = channels + (3 if use_xyz else 0)
        if normalize:
            self.affine_alpha = nn.Parameter(torch.ones(1, 1, 1, self.channels))
            self.affine_beta = nn.Parameter(torch.zeros(1, 1, 1, self.channels))

    def forward(self, xyz, x):
        """Group clouds of coordinates ``xyz`` (B, N, 3) and features ``x`` (B, N, C).

        Returns:
            tuple: Indices of the centers (B, S); of the neighbors (B, S, K); features of the
            neighbors (B, S, K, C [+ 3]); features of the centers (B, S, C).
        """
        chosen = farthest_point_sample(xyz, self.centers, self.start, self.backend)
        center_xyz = gather_points(xyz, chosen)
        index = nearest_neighbours(center_xyz, xyz, self.neighbours, self.backend)
        center = gather_points(x, chosen)
        anchor = torch.cat([center, center_xyz.to(x.dtype)], -1) if self.use_xyz else center
        points = torch.cat([x, xyz.to(x.dtype)], -1) if self.use_xyz else x
        grouped = gather_points(points, index)
        if self.normalize:
            mean = anchor.unsqueeze(2) if self.normalize == 'anchor' else grouped.mean(2, True)
            grouped = grouped - mean
            std = grouped.flatten(1).std(1).view(-1, 1, 1, 1)
            grouped = grouped * (self.affine_alpha / (std + 1e-5)) + self.affine_beta
        return chosen, index, grouped, center


class GroupBlocks(nn.Module):
    """What turns the groups of a stage into points: clusters and residual blocks, then a maximum.

    Args:
        grouped (int): Channels of a neighbor.
        center (int): Channels of a center, appended to each neighbor.
        out_channels (int): Channels of the points that come out.
        blocks (int): Pairs of a cluster and a residual block.
        cluster (dict): Arguments of :class:`GroupCluster`.
        residual (dict): Arguments of :class:`ResidualPointwise`.
    """

    def __init__(self, grouped, center, out_channels, blocks, cluster, residual):
        super().__init__()
        kept = {key: residual[key] for key in ('bias', 'activation')}
        self.transfer = PointwiseNormAct(grouped + center, out_channels, **kept)
        layers = []
        for _ in range(blocks):
            layers.append(GroupCluster(out_channels, **cluster))
            layers.append(ResidualPointwise(out_channels, **residual))
        self.operation = nn.Sequential(*layers)

    def forward(self, grouped, center):
        """Map (B, S, K, C1) and (B, S, C2) to (B, S, out_channels)."""
        x = self.transfer.forward_pair(grouped.flatten(0, 1), center.flatten(0, 1))
        return self.operation(x).amax(1).unflatten(0, grouped.shape[:2])

    def similarity(self, grouped, center, block):
        """Similarities (B, S, K) in the clusters of a block; inputs as of :meth:`forward`."""
        x = self.transfer.forward_pair(grouped.flatten(0, 1), center.flatten(0, 1))
        last = 2 * (block % (len(self.operation) // 2))
        x = self.operation[last].similarity(self.operation[:last](x))
        return x.unflatten(0, grouped.shape[:2])


class PointBlocks(nn.Module):
    """Residual blocks on the points of a stage."""

    def __init__(self, channels, blocks, residual):
        super().__init__()
        self.operation = nn.Sequential(
            *[ResidualPointwise(channels, **residual) for _ in range(blocks)]
        )

    def forward(self, x):
        """Map points (B, S, channels) to the same shape."""
        return self.operation(x)
