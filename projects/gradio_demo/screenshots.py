#!/usr/bin/env python
"""Take the pictures of the demo in docs/images, with a headless Chromium."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / 'docs' / 'images'


def _choose(page, where: str, name: str) -> None:
    page.click(f'{where} input')
    page.get_by_role('option', name=name).last.click()
    _settle(page)


def _settle(page) -> None:
    """Wait until nothing is being worked on."""
    page.wait_for_timeout(1500)
    page.wait_for_function(
        "!document.querySelector('.wrap.generating, .wrap.pending, .wrap.translucent:not(.hide)')"
    )
    page.wait_for_timeout(700)


def _example(page, number: int) -> None:
    page.locator('#examples button').nth(number).click()
    _settle(page)


def _slide(page, name: str, value) -> None:
    field = page.locator(f'#{name} input[type=number]')
    field.fill(str(value))
    field.press('Enter')
    _settle(page)


def _click(page, across: float, down: float) -> None:
    box = page.locator('#overlay-a img').bounding_box()
    page.mouse.click(box['x'] + across * box['width'], box['y'] + down * box['height'])
    _settle(page)


def take(page, address: str, out: Path, labels: list[str]) -> list[Path]:
    """Use the page as a visitor would and take pictures of it.

    Args:
        page: Of Playwright.
        address: Of the demo.
        out: Folder for the pictures.
        labels: Of the models: a classifier, a detector, a segmentor, and
            any others.
    """
    taken = []

    def shoot(name: str, width: int = 1280) -> None:
        page.set_viewport_size(dict(width=width, height=900))
        _settle(page)
        taken.append(out / f'demo-{name}.png')
        page.screenshot(path=taken[-1], full_page=True)

    page.set_viewport_size(dict(width=1280, height=900))
    page.goto(address)
    page.wait_for_selector('#overlay-a img')
    _settle(page)
    _choose(page, '#size', '448 pixels')
    _example(page, 4)
    shoot('classification')
    _click(page, 0.32, 0.62)
    shoot('point')
    page.get_by_label('Compare').check()
    _settle(page)
    _choose(page, '#model-b', labels[-1])
    shoot('compare')
    page.get_by_label('Compare').uncheck()
    page.click('#clear-a')
    _choose(page, '#size', 'own')
    _example(page, 0)
    _choose(page, '#model-a', labels[1])
    shoot('detection')
    _choose(page, '#model-a', labels[2])
    shoot('segmentation')
    shoot('narrow', width=480)
    return taken


def main() -> int:
    """Start the demo, take the pictures, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out-dir', type=Path, default=OUT, help=f'default: {OUT.name}')
    parser.add_argument('--chromium', default=shutil.which('chromium'), help='the browser')
    args, rest = parser.parse_known_args()
    if args.chromium is None:
        print('error: no chromium; name one with --chromium', file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    command = [sys.executable, str(HERE / 'app.py'), *rest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            labels, address = [], None
            for line in server.stdout:
                if line.startswith('Models: '):
                    labels = line.removeprefix('Models: ').strip().split(', ')
                found = re.search(r'Open (http\S+)', line)
                if found:
                    address = found[1]
                    break
            if address is None or len(labels) < 3:
                print('error: the demo needs the three models of make quickstart', file=sys.stderr)
                return 2
            with sync_playwright() as playwright:
                options = dict(executable_path=args.chromium, args=['--no-sandbox'])
                browser = playwright.chromium.launch(**options)
                page = browser.new_page()
                page.set_default_timeout(90_000)
                args.out_dir.mkdir(parents=True, exist_ok=True)
                for path in take(page, address, args.out_dir, labels):
                    print(path)
                browser.close()
        finally:
            server.terminate()
    return 0


if __name__ == '__main__':
    sys.exit(main())
