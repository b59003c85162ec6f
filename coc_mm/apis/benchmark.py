"""Throughput, latency and memory of a model."""

import time
from typing import Any

import torch
from torch import nn

from coc_mm.utils.memory import PeakMemory

#: Height and width of the images of each library.
SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}
#: The part that is measured: the work of detection heads depends on what is seen.
MEASURED = {'mmpretrain': 'whole model', 'mmdet': 'backbone and neck', 'mmseg': 'whole model'}
_WARM_UP = 3


def forward(model: Any, scope: str, image: torch.Tensor) -> list[torch.Tensor]:
    """Run the part of a model that is measured, on (B, C, H, W)."""
    if scope == 'mmdet':
        return list(model.extract_feat(image))
    if scope == 'mmpretrain' or model.training:
        return [model(image, mode='tensor')]
    return [model.encode_decode(image, [dict(img_shape=tuple(image.shape[2:]))])]


def measure(
    model: nn.Module,
    scope: str,
    image: torch.Tensor,
    training: bool = False,
    amp: bool = False,
    compiled: bool = False,
    rounds: int = 20,
) -> dict:
    """Time a model of 'mmpretrain', 'mmdet' or 'mmseg' on normalized images (B, C, H, W).

    ``training`` includes the backward pass. Throughput is that at the median latency;
    ``first_call_s`` includes any compiling.
    """
    device = image.device
    model.train(training)
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    run = torch.compile(forward) if compiled else forward

    def step() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(training), torch.autocast(device.type, dtype, enabled=amp):
            outs = run(model, scope, image)
        if training:
            torch.stack([out.float().square().mean() for out in outs]).sum().backward()
            model.zero_grad(set_to_none=True)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    memory = PeakMemory(device)
    first, *_ = [step() for _ in range(_WARM_UP)]
    if device.type == 'cuda':  # a compiler's own memory is not the model's
        memory.start()
    seconds = torch.tensor([step() for _ in range(rounds)], dtype=torch.float64)
    points = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    latency = [round(1000 * x, 3) for x in seconds.quantile(points).tolist()]
    peak = memory.peak()
    return dict(
        images_per_second=round(len(image) / seconds.quantile(0.5).item(), 3),
        latency_ms=dict(zip(('p50', 'p90', 'p99'), latency, strict=True)),
        peak_memory_mib=None if peak is None else round(peak, 1),
        first_call_s=round(first, 3),
    )
