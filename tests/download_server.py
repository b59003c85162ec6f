"""A local server that drops connections, lies and breaks."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

CONTENT = bytes(range(256)) * 2000
MD5 = f'md5:{hashlib.md5(CONTENT).hexdigest()}'


class Handler(BaseHTTPRequestHandler):
    """Serves ``behaviour.content`` as badly as ``behaviour`` says."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        how = self.server.behaviour
        how.requests.append((self.path, self.headers.get('Range')))
        if how.status:
            status = how.status.pop(0)
            self.send_response(status)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = how.content[self.path] if isinstance(how.content, dict) else how.content
        asked, start = self.headers.get('Range'), 0
        if asked and how.ranges and self.headers.get('If-Range') == how.etag:
            start = int(asked.removeprefix('bytes=').rstrip('-'))
            if start >= len(content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(content)}')
                self.send_header('Content-Length', '0')
                self.end_headers()
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('Content-Type', how.kind)
        self.send_header('Content-Length', str(len(content) - start))
        if how.etag:
            self.send_header('ETag', how.etag)
        self.end_headers()
        end = min(len(content), start + how.drops.pop(0)) if how.drops else len(content)
        self.wfile.write(content[start:end])


@contextmanager
def serve(monkeypatch):
    """Serve; gives the behaviour to change, with ``url`` and the ``requests`` so far."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.behaviour = SimpleNamespace(
        content=CONTENT,
        ranges=True,
        etag='"1"',
        status=[],
        drops=[],
        kind='application/zip',
        requests=[],
    )
    server.behaviour.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        yield server.behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
