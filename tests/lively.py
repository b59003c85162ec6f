"""Weights that make every part of a model count: layer scales start near zero."""

from torch import nn


def enliven(model):
    """Draw livelier weights for a model and return it, in evaluation mode."""
    for name, p in model.named_parameters():
        if 'layer_scale' in name:
            nn.init.constant_(p, 0.5)
        elif p.dim() > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif 'norm' in name or 'bias' in name or 'sim_' in name:
            nn.init.normal_(p, mean=p.data.mean().item(), std=0.2)
    return model.eval()
