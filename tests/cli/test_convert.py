"""The command that converts official weights."""

import pytest
import torch

from coc_mm.checkpoints.safe_pickle import read_file

CONVERT = 'model_converters/official_to_coc_mm'


def test_every_key_that_does_not_fit_is_named(official_tiny, tmp_path, capsys, tool):
    pytest.importorskip('mmpretrain')
    content = read_file(official_tiny)
    weights = dict(content['state_dict'])
    del weights['norm.weight'], weights['network.0.0.mlp.fc1.bias']
    weights['head.weight'] = weights['head.weight'][:10]
    torch.save(dict(content, state_dict=weights), official_tiny)
    assert tool(CONVERT)([str(official_tiny), str(tmp_path / 'ours.pth')]) == 2
    message = capsys.readouterr().err
    assert '2 missing (' in message
    assert 'backbone.stages.0.blocks.0.mlp.fc1.bias' in message
    assert 'backbone.norm3.weight' in message
    assert '1 of another shape (head.fc.weight is 10x320, the model has 1000x320' in message
    torch.save(dict(content, state_dict={**weights, 'intruder': torch.zeros(1)}), official_tiny)
    assert tool(CONVERT)([str(official_tiny), str(tmp_path / 'ours.pth')]) == 2
    assert '1 unknown keys: intruder' in capsys.readouterr().err
    assert not (tmp_path / 'ours.pth').exists()
