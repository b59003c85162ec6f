"""The command that converts official weights."""

import argparse

import golden
import pytest
import torch

from coc_mm.checkpoints.safe_pickle import read_file

CONVERT = 'model_converters/official_to_coc_mm'


@pytest.fixture
def tiny(tmp_path):
    """Save the rebuilt official classifier as timm's script does."""
    weights = golden.official_state_dict('coc_tiny')
    content = dict(
        state_dict=weights,
        args=argparse.Namespace(model='coc_tiny'),
        optimizer=dict(state={0: dict(exp_avg=torch.zeros(3))}),
    )
    torch.save(content, tmp_path / 'official.pth.tar')
    return tmp_path / 'official.pth.tar'


def test_every_key_that_does_not_fit_is_named(tiny, tmp_path, capsys, tool):
    pytest.importorskip('mmpretrain')
    content = read_file(tiny)
    weights = dict(content['state_dict'])
    del weights['norm.weight'], weights['network.0.0.mlp.fc1.bias']
    weights['head.weight'] = weights['head.weight'][:10]
    torch.save(dict(content, state_dict=weights), tiny)
    assert tool(CONVERT)([str(tiny), str(tmp_path / 'ours.pth')]) == 2
    message = capsys.readouterr().err
    assert '2 missing (' in message
    assert 'backbone.stages.0.blocks.0.mlp.fc1.bias' in message
    assert 'backbone.norm3.weight' in message
    assert '1 of another shape (head.fc.weight is 10x320, the model has 1000x320' in message
    torch.save(dict(content, state_dict={**weights, 'intruder': torch.zeros(1)}), tiny)
    assert tool(CONVERT)([str(tiny), str(tmp_path / 'ours.pth')]) == 2
    assert '1 unknown keys: intruder' in capsys.readouterr().err
    assert not (tmp_path / 'ours.pth').exists()


def test_refusals(refused, tiny, tmp_path):
    target = tmp_path / 'there.pth'
    target.write_bytes(b'kept')
    refused(CONVERT, tiny, target, says=['there.pth exists', '--force'])
    assert target.read_bytes() == b'kept'
    refused(CONVERT, tmp_path / 'none.pth', tmp_path / 'a.pth', says=['does not exist'])
