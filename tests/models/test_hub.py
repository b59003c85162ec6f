"""Saving and loading as the Hugging Face hub does, in a local folder."""

import json

import pytest
import torch

from coc_mm.models import ContextCluster

MINI = dict(depths=[1] * 4, dims=[8, 16, 24, 32], mlp_ratios=[2] * 4, heads=[2] * 4, head_dim=4)
CASES = [
    dict(arch='tiny'),
    dict(arch=MINI, out_indices=(0, 2), folds=((7, 3), 4, 2, 1), denominator='count'),
    dict(arch=MINI, in_channels=4, layer_scale_init_value=0, drop_path_rate=0.1),
]


@pytest.mark.parametrize('kwargs', CASES)
def test_a_round_trip_is_bit_equal(kwargs, tmp_path):
    model = ContextCluster(**kwargs).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(tmp_path / 'hub')
    again = ContextCluster.from_pretrained(tmp_path / 'hub')
    image = torch.rand(1, model.in_channels, 40, 64)
    for found, expected in zip(again(image), model(image), strict=True):
        assert torch.equal(found, expected)
    assert again.is_init
    assert not again.training
    files = {path.name for path in (tmp_path / 'hub').iterdir()}
    assert files == {'config.json', 'model.safetensors', 'README.md'}


def test_the_formula_that_weights_bring_is_kept(tmp_path):
    model = ContextCluster(MINI).eval()
    model.load_state_dict(ContextCluster(MINI, denominator='count').state_dict())
    model.save_pretrained(tmp_path)
    again = ContextCluster.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(image)[0], model(image)[0])
    assert again.blocks[0][0].mixer.denominator == 'count'


def test_the_card_has_figures_and_arguments(tmp_path):
    ContextCluster('tiny').save_pretrained(tmp_path, model_card_kwargs=dict(results='71.9 %'))
    card = (tmp_path / 'README.md').read_text()
    for text in ('library_name: coc_mm', '| the paper | 71.8 |', '71.9 %', '5,249,', '"tiny"'):
        assert text in card
    config = json.loads((tmp_path / 'config.json').read_text())
    config['arch'] = 'small'
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match='size mismatch'):
        ContextCluster.from_pretrained(tmp_path)
