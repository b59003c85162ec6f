import torch

PUBLISH = 'model_converters/publish'


def test_publishing(tool, refused, tmp_path, capsys):
    source = tmp_path / 'epoch_3.pth'
    torch.save(dict(state_dict={'w': torch.zeros(2)}), source)
    assert tool(PUBLISH)([str(source), str(tmp_path / 'model.pth')]) == 0
    (path,) = tmp_path.glob('model-????????.pth')
    assert f'wrote {path}' in capsys.readouterr().out
    refused(PUBLISH, source, tmp_path / 'model.pth', says=['--force'])
    refused(PUBLISH, source, tmp_path / 'model.pth', '--no-ema', says=['without EMA'])
