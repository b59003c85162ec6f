#!/usr/bin/env python
"""Show in a web browser what Context Cluster models group together."""

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

try:
    import coc_mm
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import coc_mm  # noqa: F401

from coc_mm.errors import UserError, run_command

DEFAULT_FOLDER = 'work_dirs/quickstart'
DEFAULT_MODEL = 'coc-tiny_8xb128_in1k'
SESSIONS = 200  # open pages whose choices are remembered, the longest unused forgotten
THREADS = 8  # for files and drawing; models run in threads of their own


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments of the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        '--checkpoints',
        metavar='DIR',
        help='offer all checkpoints in this folder; default: the newest of each task in '
        f'{DEFAULT_FOLDER}',
    )
    add(
        '--models',
        nargs='*',
        metavar='NAME',
        help='models by name, untrained; * and ? match several; default: ' + DEFAULT_MODEL,
    )
    add('--host', default='127.0.0.1', help='address to listen on; default: 127.0.0.1')
    add('--port', type=int, help='default: the first free one from 7860')
    add('--share', action='store_true', help='open a public tunnel through the servers of gradio')
    add('--api', action='store_true', help='offer predict to gradio_client')
    add('--device', default='cpu', help='cpu, cuda, cuda:1; default: cpu')
    add('--max-mb', type=float, default=20, help='of a file, in MB; default: 20')
    add('--max-megapixels', type=float, default=50, help='of an image; default: 50')
    add('--max-side', type=int, default=2048, help='larger images are shrunk; default: 2048')
    add('--time-limit', type=float, default=60, help='for a model and image, in s; default: 60')
    add('--workers', type=int, default=2, help='requests worked on at a time; default: 2')
    add('--queue', type=int, default=32, help='requests that may wait; default: 32')
    add('--keep', type=float, default=1800, help='images of idle visitors, in s; default: 1800')
    add('--max-models', type=int, default=3, help='models in memory at a time; default: 3')
    args = parser.parse_args(argv)
    for name in (
        'max-mb',
        'max-megapixels',
        'time-limit',
        'workers',
        'queue',
        'max-models',
        'keep',
    ):
        if getattr(args, name.replace('-', '_')) <= 0:
            parser.error(f'argument --{name}: must be above 0')
    if not 64 <= args.max_side <= 8192:
        parser.error(f'argument --max-side: between 64 and 8192, got {args.max_side}')
    return args


def make_temporary_folder() -> Path:
    """Make the folder for all that is uploaded or drawn; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix='coc_mm_demo_')).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # gradio reads these when it is imported
    os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED='False')
    return folder


def find_sources(args: argparse.Namespace) -> list:
    """List the models that are offered, or raise a :class:`UserError` if there are none."""
    from cluster_demo.catalog import find_models

    folder = Path(args.checkpoints or DEFAULT_FOLDER)
    if args.checkpoints and not folder.is_dir():
        raise UserError(f'--checkpoints {folder} is not a folder.')
    names = args.models if args.models is not None else [DEFAULT_MODEL]
    sources = find_models(folder, names, newest_only=not args.checkpoints)
    if not sources:
        raise UserError(f'there are no checkpoints in {folder}; name another folder, or --models.')
    if not any(source.trained for source in sources):
        print(f'No checkpoints in {folder}: models are untrained. make quickstart trains some.')
    return sources


def serve(args: argparse.Namespace, wait: bool = True):
    """Start the server; wait until it is stopped, or return the page and its address."""
    sources = find_sources(args)
    folder = make_temporary_folder()
    import torch
    from cluster_demo.allowlist import AllowlistMiddleware
    from cluster_demo.engine import Engine
    from cluster_demo.examples import write_examples
    from cluster_demo.page import CSS, THEME, build_page
    from cluster_demo.uploads import Limits
    from starlette.middleware import Middleware

    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(f'--device {args.device} cannot be used here ({reason}).') from None
    limits = Limits(args.max_megapixels, args.max_side, args.time_limit)
    engine = Engine(sources, limits, args.device, args.max_models, workers=args.workers)
    examples = write_examples(folder / 'examples')
    pictures, keep = folder / 'pictures', round(args.keep)
    page = build_page(engine, examples, pictures, args.workers, keep, args.api)
    page.queue(max_size=args.queue, default_concurrency_limit=args.workers, api_open=False)
    allowlist = Middleware(AllowlistMiddleware, page, folder, args.max_mb)
    try:
        _, address, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            max_file_size=round(args.max_mb * 1e6),
            app_kwargs=dict(middleware=[allowlist]),
            state_session_capacity=SESSIONS,
            max_threads=max(THREADS, 4 * args.workers),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=THEME,
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f'cannot listen on {args.host}: {error}') from None
    print(f'Models: {", ".join(engine.labels)}')
    print(f'Open {address} in a browser; Ctrl+C ends it.', flush=True)
    if wait:
        page.block_thread()
    return page, address


def _stop(signum, frame) -> None:
    raise KeyboardInterrupt


def main(argv=None) -> int:
    """Run the demo until it is stopped; return the exit status."""
    signal.signal(signal.SIGTERM, _stop)  # so that the temporary folder goes, too
    return run_command(lambda arguments: serve(parse_args(arguments)) and None, argv)


if __name__ == '__main__':
    sys.exit(main())
