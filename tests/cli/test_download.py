"""The command that fetches published weights."""

import golden
import torch

from coc_mm.cli.download import main


def test_several_models_of_which_one_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('COC_MM_MIRROR', str(tmp_path))
    weights = golden.in_layout('submission', golden.official_state_dict('coc_tiny2'))
    torch.save(dict(state_dict=weights), tmp_path / 'coc_tiny2_submission.pth.tar')
    names, flags = ['coc-tiny2*', 'coc-medium*'], ['--to', str(tmp_path / 'to')]
    for _ in range(2):
        assert main([*names, *flags]) == 2
        said = capsys.readouterr()
        path = tmp_path / 'to' / 'coc-tiny2_8xb128_in1k.pth'
        assert f'{path} is there. Next:\npython tools/test.py configs/classification/' in said.out
        assert 'has no file coc_medium.pth.tar' in said.out
        assert '1 of 2 failed: coc-medium_8xb128_in1k' in said.err
    assert main([*names, *flags, '--source', 'openmixup']) == 2
    assert 'no weights from openmixup are published for coc-tiny2*' in capsys.readouterr().err
