"""Parity with the official implementation, in float64."""

import golden
import numpy as np
import pytest
import torch

from coc_mm.checkpoints import convert_official
from coc_mm.models import ContextCluster

BACKENDS = ['reference', 'fused']
CLASSIFIERS = ['tiny', 'tiny2', 'tiny_plain', 'small', 'medium', 'base_dim64', 'base_dim96']
DENSE = [(arch, centers, 'similarity') for arch in ('small', 'medium') for centers in (4, 25, 49)]
DENSE.append(('small', 25, 'count'))


def test_every_golden_file_is_covered():
    names = {path.stem for path in golden.FOLDER.glob('*.npz')}
    covered = {f'coc_{arch}_224x224' for arch in CLASSIFIERS}
    covered |= {dense_name(*case) for case in DENSE}
    covered |= {'coc_tiny_count_denominator_224x224', 'coc_tiny_grad_64x64'}
    # Point clouds are a project of their own.
    assert names - covered == {'pointmlp_coc_1024'}


def dense_name(arch, centers, denominator):
    old = '_count_denominator' if denominator == 'count' else ''
    return f'{arch}_c{centers}{old}_256x352'


def classifier(arch, backend, denominator='similarity', salt=0):
    """Build mmpretrain's classifier with the rebuilt official weights."""
    registry = pytest.importorskip('mmpretrain.registry')
    state_dict = convert_official(golden.official_state_dict(f'coc_{arch}', salt))
    model = registry.MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='coc_mm.ContextCluster', arch=arch, denominator=denominator, backend=backend
            ),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=1000,
                in_channels=ContextCluster.arch_zoo[arch]['dims'][-1],
            ),
        )
    )
    model.double().load_state_dict(state_dict)
    return model.eval()


def assert_close(actual, expected, rtol=1e-9, atol=None):
    atol = rtol * np.abs(expected).max() if atol is None else atol
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('arch', CLASSIFIERS)
def test_logits(arch, backend):
    expected = golden.load(f'coc_{arch}_224x224')
    model = classifier(arch, backend, salt=int(expected['salt']))
    with torch.inference_mode():
        logits = model(golden.image(expected['input_shape'], expected['seed']), mode='tensor')
    assert_close(logits.numpy(), expected['logits'])


@pytest.mark.parametrize('backend', BACKENDS)
def test_logits_of_the_older_denominator(backend):
    expected = golden.load('coc_tiny_count_denominator_224x224')
    image = golden.image(expected['input_shape'], expected['seed'])
    with torch.inference_mode():
        old = classifier('tiny', backend, 'count')(image, mode='tensor').numpy()
        new = classifier('tiny', backend)(image, mode='tensor').numpy()
    assert_close(old, expected['logits'])
    assert np.abs(old - new).max() > 1e-3


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('arch', 'centers', 'denominator'), DENSE)
def test_dense_maps(arch, centers, denominator, backend):
    expected = golden.load(dense_name(arch, centers, denominator))
    weights = golden.official_state_dict(f'{arch}_dense', int(expected['salt']))
    state_dict = {
        key.removeprefix('backbone.'): value
        for key, value in convert_official(weights, task='segmentation').items()
    }
    model = ContextCluster(
        arch,
        out_indices=(0, 1, 2, 3),
        proposals=int(centers**0.5),
        denominator=denominator,
        backend=backend,
    ).double()
    model.load_state_dict(state_dict)
    with torch.inference_mode():
        levels = model.eval()(golden.image(expected['input_shape'], expected['seed']))
    assert len(levels) == 4
    for i, level in enumerate(levels):
        assert tuple(level.shape) == tuple(expected[f'level{i}_shape'])
        assert_close(level.norm().item(), expected[f'level{i}_norm'])
        assert_close(level.flatten()[expected[f'level{i}_index']], expected[f'level{i}_value'])


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients(backend):
    expected = golden.load('coc_tiny_grad_64x64')
    model = classifier('tiny', backend, salt=int(expected['salt']))
    image = golden.image(expected['input_shape'], expected['seed']).requires_grad_()
    logits = model(image, mode='tensor')
    assert_close(logits.detach().numpy(), expected['logits'])
    rng = np.random.default_rng(int(expected['cotangent_seed']))
    (logits * torch.from_numpy(rng.standard_normal(logits.shape))).sum().backward()
    assert_close(image.grad.flatten()[expected['input_grad_index']], expected['input_grad_value'])

    # Bring our gradients under the official names by the very mapping of the weights.
    ours = {name: p.grad for name, p in model.named_parameters()}
    official = golden.official_state_dict('coc_tiny')
    norms = dict(zip(expected['grad_norm_names'], expected['grad_norm'], strict=True))
    assert set(norms) == set(official)
    assert len(norms) == 264
    for name, norm in norms.items():
        # In the last stage every point is its own center, its cosine 1 whatever the weights:
        # some gradients are 0, and the rest of their figure is rounding.
        actual = official_gradient(name, ours, official).norm().item()
        assert_close(actual, norm, rtol=1e-7, atol=1e-12)


def official_gradient(name, ours, official):
    """Pick the gradient of one official parameter by converting a marker in its place."""
    marked = {key: torch.zeros_like(value) for key, value in official.items()}
    marked[name] = torch.ones_like(official[name])
    converted = convert_official(marked)
    key = next(key for key, value in converted.items() if value.any())
    return ours[key][converted[key].bool()]
