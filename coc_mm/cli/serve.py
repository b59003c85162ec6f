"""``tools/deployment/serve.py``: answer HTTP requests with an exported ONNX model."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from coc_mm.cli.options import at_least, make_parser, need_packages
from coc_mm.errors import run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Serve a classifier or segmentor that export wrote as ONNX: '
        'curl -F file=@cat.jpg http://localhost:8000/predict'
    )
    add = parser.add_argument
    add('model', help='the .onnx file')
    add('--host', default='127.0.0.1', help='0.0.0.0 for other machines; default: %(default)s')
    add('--port', type=int, default=8000, help='default: %(default)s')
    add('--threads', type=at_least(1), help='of onnxruntime; default: one for each core')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    args = parse(argv)
    need_packages('serving', ('fastapi', 'uvicorn', 'onnxruntime', 'python-multipart'))
    import uvicorn

    from coc_mm.apis.serving import OnnxModel, make_app

    uvicorn.run(make_app(OnnxModel(args.model, args.threads)), host=args.host, port=args.port)


main = partial(run_command, run)
