"""The backbone that the three quickstart configs share, small enough for two CPU cores."""

nano = dict(
    depths=(1, 1, 2, 1),
    dims=(32, 64, 128, 256),
    mlp_ratios=(4, 4, 4, 4),
    heads=(4, 4, 8, 8),
    head_dim=24,
    proposals=2,
)
