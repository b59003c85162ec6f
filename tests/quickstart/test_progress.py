import io

from rich.console import Console

from coc_mm.quickstart.progress import LogFollower

LOG = """\
something else
Epoch(train)   [1][10/10]  lr: 1.0e-03  eta: 0:00:00  loss: 1.2500
Epoch(val)   [1][5/5]  accuracy/top1: 91.2500  data_time: 0.01
Epoch(train)   [2][ 5/10]  lr: 1.0e-03  eta: 0:00:00  loss: 0.7500
"""


def follow(tmp_path, log, total_epochs, monkeypatch):
    monkeypatch.setattr('coc_mm.quickstart.progress._LINE_EVERY', 0)
    console = Console(file=io.StringIO(), width=100)
    with LogFollower(console, 'digits', tmp_path / 'x' / 'a.log', total_epochs) as follower:
        for line in log.splitlines(keepends=True):
            follower.feed(line)
    assert (tmp_path / 'x' / 'a.log').read_text() == log
    assert list(follower.tail) == log.splitlines()
    return [line.rsplit(', ', 1)[0].strip() for line in console.file.getvalue().splitlines()]


def test_training(tmp_path, monkeypatch):
    assert follow(tmp_path, LOG, 2, monkeypatch) == [
        'digits: 50 %, epoch 1/2, loss 1.250',
        'after epoch 1: top1 91.25',
        'digits: 75 %, epoch 2/2, loss 0.750',
    ]


def test_a_test(tmp_path, monkeypatch):
    log = 'Epoch(test) [ 50/200]    eta: 0:00:05\n'
    assert follow(tmp_path, log, None, monkeypatch) == ['digits: 25 %,']
