"""How processes find each other to notice a loss; the losses are in tests/trust."""

import json
import socket
import threading

import pytest

from coc_mm.compat import lost_processes


@pytest.fixture
def meet(monkeypatch):
    """Process 0 of two; ``meet(calls)`` gives its port and token to others, then returns it."""
    monkeypatch.setattr(lost_processes, 'get_rank', lambda: 0)
    monkeypatch.setattr(lost_processes, 'get_world_size', lambda: 2)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    opened = []

    def meet(callers):
        threads, told = [], []

        def call(place):
            for caller in callers:
                connection = socket.create_connection(('127.0.0.1', place[0]), timeout=10)
                opened.append(connection)
                connection.sendall(caller(place[1]))

        def broadcast(content):
            if not told:
                threads.append(threading.Thread(target=call, args=content[:]))
                threads[0].start()
            told.append(content[0])

        monkeypatch.setattr(lost_processes, 'broadcast_object_list', broadcast)
        watch = lost_processes._Watch()
        threads[0].join(30)
        assert len(told) == 2
        assert told[1] == watch.places
        return watch

    yield meet
    for connection in opened:
        connection.close()


def peer(token):
    return json.dumps(dict(token=token, rank=1, host='there', pid=17)).encode() + b'\n'


STRANGERS = {
    'no JSON': lambda token: b'GET / HTTP/1.1\r\n\r\n',
    'a list': lambda token: b'[1]\n',
    'no token': lambda token: b'{"rank": 1}\n',
    'another token': lambda token: peer('0' * 32),
    'a number': lambda token: b'{"token": 7}\n',
    'other letters': lambda token: '{"token": "ä"}\n'.encode(),
    'no text': lambda token: b'\xff\xfe\n',
    'nested deeply': lambda token: b'[' * 2000 + b'\n',
}


@pytest.mark.parametrize('stranger', STRANGERS)
def test_strangers_are_sent_away(meet, stranger):
    watch = meet([STRANGERS[stranger], peer])
    assert watch.places[1] == ('there', 17)
    assert [line.rank for line in watch._lines] == [1]
    watch.leaving.set()


def test_who_cannot_be_reached_is_named(meet, monkeypatch, capsys):
    monkeypatch.setattr(lost_processes, '_CONNECT', 0.2)
    watch = meet([])
    assert set(watch.places) == {0}
    assert watch._lines == []
    said = capsys.readouterr().out
    assert 'cannot be reached by process 1' in said
    assert 'env_cfg.dist_cfg.timeout' in said
