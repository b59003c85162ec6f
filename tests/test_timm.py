"""The models in timm, and in segmentation_models_pytorch through it."""

from pathlib import Path

import pytest
import torch

from coc_mm.errors import CheckpointError
from coc_mm.models import ContextCluster

timm = pytest.importorskip('timm', reason='coc_mm.timm needs timm: pip install timm')
coc = pytest.importorskip('coc_mm.timm')

ARCHES = [f'coc_{arch}' for arch in ContextCluster.arch_zoo]


@pytest.fixture(scope='module')
def image():
    torch.manual_seed(0)
    return torch.rand(1, 3, 64, 96)


@pytest.fixture
def checkpoint(tmp_path):
    """A classifier of five classes, as mmpretrain saves it, and its file."""
    model = timm.create_model('coc_tiny', num_classes=5).eval()
    path = tmp_path / 'five.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return model, str(path)


@pytest.mark.parametrize('name', ARCHES)
def test_every_architecture_is_registered(name, image):
    assert name in timm.list_models('coc_*')
    dims = ContextCluster.arch_zoo[name.removeprefix('coc_')]['dims']
    with torch.device('meta'):
        model = timm.create_model(name, features_only=True, out_indices=(1, 3))
        assert model.feature_info.channels() == [dims[1], dims[3]]
        model = timm.create_model(name)
    cfg = model.default_cfg
    assert (cfg['input_size'], cfg['crop_pct'], cfg['classifier']) == (
        (3, 224, 224),
        0.9,
        'head.fc',
    )
    assert model.get_classifier().out_features == cfg['num_classes'] == 1000
    assert timm.data.resolve_model_data_config(model)['mean'] == (0.485, 0.456, 0.406)


def test_the_protocol_of_a_classifier(image):
    model = timm.create_model('coc_tiny', num_classes=10, drop_path_rate=0.1).eval()
    features = model.forward_features(image)
    assert features.shape == (1, 320, 2, 3)
    torch.testing.assert_close(model.forward_head(features), model(image))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert model.num_features == model.head_hidden_size == 320
    model.reset_classifier(7)
    assert model(image).shape == (1, 7)
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), pooled)
    model.reset_classifier(0, '')
    assert model(image).shape == features.shape
    assert timm.create_model('coc_tiny', in_chans=1)(image[:, :1]).shape == (1, 1000)


def test_layer_wise_learning_rates_cover_all_parameters():
    model = timm.create_model('coc_tiny')
    groups = pytest.importorskip('timm.optim').param_groups_layer_decay(model, layer_decay=0.5)
    scales = sorted({group['lr_scale'] for group in groups})
    # The stem, blocks (reducers go with the first of their stage), the norm with the head.
    assert len(scales) == 1 + sum(ContextCluster.arch_zoo['tiny']['depths']) + 1
    model.set_grad_checkpointing()
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_maps_of_the_stages(image):
    model = timm.create_model('coc_tiny', features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [32, 64, 196, 320]
    assert [tuple(x.shape[1:]) for x in model(image)] == [
        (32, 16, 24), (64, 8, 12), (196, 4, 6), (320, 2, 3),
    ]  # fmt: skip
    sum(level.sum() for level in model(image)).backward()  # nothing is there for nothing
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    whole = timm.create_model('coc_tiny').eval()
    last, levels = whole.forward_intermediates(image, indices=[1, 3], norm=True)
    assert torch.equal(last, levels[1])
    assert torch.equal(last, whole.forward_features(image))
    (level,) = whole.forward_intermediates(image, 1, stop_early=True, intermediates_only=True)
    assert torch.equal(level, whole.forward_intermediates(image)[1][3])
    short = timm.create_model('coc_tiny', features_only=True, out_indices=(0, 1))
    assert len(short.model.backbone.stages) == 2
    assert [x.shape[1] for x in short(image)] == [32, 64]


def test_weights_from_a_file(checkpoint, image):
    model, path = checkpoint
    for classes in (dict(), dict(num_classes=5)):  # its own head
        again = timm.create_model('coc_tiny', pretrained=path, **classes).eval()
        assert torch.equal(again(image), model(image))
        assert 'state_dict' not in again.pretrained_cfg
    other = timm.create_model('coc_tiny', pretrained=path, num_classes=10).eval()
    assert torch.equal(other.forward_features(image), model.forward_features(image))
    assert other(image).shape == (1, 10)
    levels = timm.create_model('coc_tiny', pretrained=path, features_only=True).eval()
    expected = model.forward_intermediates(image, intermediates_only=True)
    assert all(map(torch.equal, levels(image), expected))
    gray = timm.create_model('coc_tiny', pretrained=path, in_chans=1).eval()
    same = image[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(gray(image[:, :1]), model(same), rtol=1e-4, atol=1e-5)
    again = timm.create_model('coc_tiny', num_classes=5, checkpoint_path=path).eval()
    assert torch.equal(again(image), model(image))


def test_weights_by_name(checkpoint, image, tmp_path, monkeypatch):
    model, _ = checkpoint
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'five.pth').rename('checkpoints/coc-tiny_8xb128_in1k.pth')
    again = timm.create_model('coc_tiny', pretrained=True).eval()
    assert torch.equal(again(image), model(image))
    asked = []
    monkeypatch.setattr(coc, 'load_checkpoint_safely', asked.append)
    for source in (True, 'openmixup'):  # where nothing is there, what is published is fetched
        Path('checkpoints/coc-tiny_8xb128_in1k.pth').unlink(missing_ok=True)
        with pytest.raises(AttributeError):
            timm.create_model('coc_tiny', pretrained=source)
    assert asked == [f'coc_mm://coc-tiny_8xb128_in1k/{x}' for x in ('', 'openmixup')]


def test_the_mixer_of_the_weights_is_kept(tmp_path):
    model = coc.ContextClusterClassifier('tiny', 5, backbone=dict(denominator='count'))
    path = tmp_path / 'count.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    for kwargs in ({}, dict(features_only=True)):
        again = timm.create_model('coc_tiny', pretrained=path, **kwargs)
        mixers = [m for m in again.modules() if hasattr(m, 'denominator') and hasattr(m, 'mix')]
        assert {mixer.denominator for mixer in mixers} == {'count'}
    meta = dict(coc_mm=dict(backbone=dict(proposals=5)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    again = timm.create_model('coc_tiny', pretrained=path)
    assert again.backbone.proposals == ((5, 5),) * 4
    again.save_pretrained(tmp_path / 'hub')
    again = coc.ContextClusterClassifier.from_pretrained(tmp_path / 'hub')
    assert again.backbone.blocks[3][0].mixer.denominator == 'count'
    torch.save(dict(state_dict=dict(w=torch.ones(1))), path)
    with pytest.raises(CheckpointError, match='no weights of a Context Cluster'):
        timm.create_model('coc_tiny', pretrained=path)


def test_a_round_trip_through_a_folder_of_the_hub(image, tmp_path):
    model = timm.create_model('coc_tiny', in_chans=3).eval()
    model.reset_classifier(4)
    model.save_pretrained(tmp_path / 'hub')
    again = coc.ContextClusterClassifier.from_pretrained(tmp_path / 'hub')
    assert torch.equal(again(image), model(image))


def test_as_an_encoder_of_segmentation_models(image):
    smp = pytest.importorskip('segmentation_models_pytorch')
    for build in (smp.Unet, smp.FPN):
        model = build('tu-coc_tiny', encoder_weights=None, classes=3).eval()
        assert model(image).shape == (1, 3, 64, 96)
