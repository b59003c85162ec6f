import pytest


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['clasification'], "no task 'clasification'; there are classification, detection"),
        (['--cfg-options', 'max_epochs'], "expected KEY=VALUE, got 'max_epochs'"),
    ],
)
def test_wrong_usage(tool, arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit, match='2'):
        tool('quickstart')([*arguments, '--work-dir', str(tmp_path / 'work')])
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'work').exists()
