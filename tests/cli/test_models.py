"""tools/models.py lists names, figures and sizes."""

from coc_mm.apis import list_models
from coc_mm.cli.models import main


def test_models_are_listed(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if '_' in line} == set(list_models())
    assert main(['coc-tiny_8xb128_', '--task', 'classification']) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if 'in1k' in x]
    assert line.split()[:5] == ['coc-tiny_8xb128_in1k', 'classification', '5.6', 'M', 'top-1']
    assert main(['nothing']) == 2
    assert "no model matches 'nothing'" in capsys.readouterr().err
