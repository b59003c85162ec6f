"""The page in a real browser: a headless Chromium, driven by Playwright."""

import shutil
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium: apt-get install chromium')
WAIT = 60_000  # ms; machines that run other tests at the same time are slow


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='no playwright: pip install playwright'
    )
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """A visitor whose page shows the first example, and who talks to nobody else."""
    opened = browser.new_page(viewport=dict(width=1280, height=1000), accept_downloads=True)
    opened.set_default_timeout(WAIT)
    problems, others = [], []
    opened.on('pageerror', lambda error: problems.append(str(error)))
    ours = (server.url, 'data:', 'blob:')
    opened.on('request', lambda r: r.url.startswith(ours) or others.append(r.url))
    opened.goto(server.url)
    opened.wait_for_selector('#overlay-a img')
    opened.wait_for_selector('#classes-a .confidence-set, #found-a p, #found-a li')
    yield opened
    opened.close()
    assert not problems
    assert not others


@pytest.fixture
def red(tmp_path):
    """A red picture with a corner of blue."""
    pixels = np.zeros((500, 640, 3), np.uint8)
    pixels[...] = (255, 0, 0)
    pixels[:200, :200] = (0, 0, 255)
    path = tmp_path / 'red.png'
    Image.fromarray(pixels).save(path)
    return path


def source_of(page, where):
    return page.locator(f'{where} img').get_attribute('src')


def changes(page, where, action, timeout=WAIT / 1000):
    """Do something and wait for a picture to become another one."""
    before = source_of(page, where)
    action()
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = page.locator(f'{where} img')
        if found.count() and found.get_attribute('src') != before:
            page.wait_for_timeout(200)
            return found.get_attribute('src')
        page.wait_for_timeout(100)
    raise AssertionError(f'{where} shows the same picture as before')


def upload(page, path):
    page.locator('#image input[type=file]').first.set_input_files(path)


def choose(page, side, name):
    page.click(f'#model-{side} input')
    page.get_by_role('option', name=name).last.click()


def choose_classifier(page):
    choose(page, 'a', 'small/epoch_10.pth')
    page.wait_for_function("document.querySelector('#facts-a').innerText.includes('Classific')")


def slide(page, name, value):
    field = page.locator(f'#{name} input[type=number]')
    field.fill(str(value))
    field.press('Enter')


def pixels_of(page, where):
    with urllib.request.urlopen(source_of(page, where), timeout=30) as answer:
        return np.asarray(Image.open(answer).convert('RGB'))


def test_upload_sliders_and_download(page, red):
    choose_classifier(page)
    changes(page, '#overlay-a', lambda: upload(page, red))
    page.wait_for_function("document.querySelector('#remark').innerText.includes('640 x 500')")
    # Names and probabilities of the classes, which sum to one.
    label = page.locator('#classes-a').inner_text().split()
    assert {'disc', 'box'} <= set(label)
    shares = [int(word.rstrip('%')) for word in label if word.endswith('%')]
    assert len(shares) == 2
    assert sum(shares) in (99, 100, 101)
    # The opacity is obeyed, red is red, and the picture keeps its size.
    changes(page, '#overlay-a', lambda: page.get_by_label('region borders').uncheck())
    changes(page, '#overlay-a', lambda: slide(page, 'alpha', 0))
    shown = pixels_of(page, '#overlay-a')
    np.testing.assert_array_equal(shown, np.asarray(Image.open(red)))
    changes(page, '#overlay-a', lambda: slide(page, 'alpha', 1))
    assert len(np.unique(pixels_of(page, '#overlay-a').reshape(-1, 3), axis=0)) <= 16
    changes(page, '#overlay-a', lambda: slide(page, 'head-a', 1))
    changes(page, '#overlay-a', lambda: slide(page, 'stage-a', 0))
    with page.expect_download() as waiting:
        page.click('#download-a')
    assert waiting.value.suggested_filename == 'clusters_stage0_block0_head1.png'
    saved = np.asarray(Image.open(waiting.value.path()).convert('RGB'))
    np.testing.assert_array_equal(saved, pixels_of(page, '#overlay-a'))


def test_click_a_point_and_compare(page, red):
    choose_classifier(page)
    changes(page, '#overlay-a', lambda: upload(page, red))
    page.wait_for_selector('#point-a .hint')
    box = page.locator('#overlay-a img').bounding_box()
    place = (box['x'] + box['width'] * 0.75, box['y'] + box['height'] * 0.75)
    changes(page, '#overlay-a', lambda: page.mouse.click(*place))
    page.wait_for_selector('#point-a table')
    assert 'similarity to its center 0.' in page.locator('#point-a').inner_text()
    rows = page.locator('#point-a tbody tr')
    assert rows.count() == 2
    assert rows.first.locator('td').last.inner_text() == '100 %'
    # Elsewhere the picture is grey now; where the click went it is not.
    shown = pixels_of(page, '#overlay-a').astype(int)
    spread = shown.max(2) - shown.min(2)
    assert spread[400, 500] > 20
    assert (spread == 0).mean() > 0.2
    # The second panel begins with the next head, at the same point.
    page.get_by_label('Compare two models or heads').check()
    page.wait_for_selector('#overlay-b img')
    page.wait_for_selector('#point-b table')
    assert page.locator('#head-b input[type=number]').input_value() == '1'
    changes(page, '#overlay-b', lambda: choose(page, 'b', 'deep/iter_5.pth'))
    page.wait_for_function("document.querySelectorAll('#point-b tbody tr').length === 3")
    assert page.locator('#model-a input').input_value() == 'small/epoch_10.pth'
    changes(page, '#overlay-a', lambda: page.click('#clear-a'))
    page.wait_for_selector('#point-a table', state='detached')
