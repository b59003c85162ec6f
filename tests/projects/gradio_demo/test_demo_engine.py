"""Models at work: bounded, for several users, and with numbers that are right."""

import time

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')
from cluster_demo import view
from cluster_demo.engine import Choice, Engine
from cluster_demo.session import Session
from cluster_demo.uploads import Limits
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.visualization import ClusterInspector, draw_clusters


@pytest.fixture
def engine(sources):
    return Engine(list(sources.values()))


def image(seed=0, height=72, width=120):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_models_in_memory_are_bounded(sources):
    engine = Engine(list(sources.values()), max_models=2)
    for label in engine.labels:
        engine.model(label)
    assert len(engine.labels) == 4
    assert len(engine._models) == 2


@pytest.mark.parametrize('name', ['small', 'boxes', 'areas'])
@pytest.mark.parametrize('size', [None, 64])
def test_maps_and_answers_are_the_inspectors(sources, name, size):
    engine = Engine([sources[name]])
    result = engine.run(engine.keep(image()), sources[name].label, size)
    loaded = engine.model(sources[name].label)
    expected = ClusterInspector(loaded.model, loaded.config, size=size)(image())
    assert result.inspection.findings == expected.findings
    assert len(expected.maps) == 4
    for key, maps in expected.maps.items():
        assert torch.equal(result.inspection.maps[key].assignment.long(), maps.assignment)
        assert torch.equal(result.inspection.maps[key].similarity, maps.similarity)
        if size is not None:
            # 64 x 38, which detectors pad to multiples of 32: 4 points a pixel at stage 0.
            assert maps.input_size in ((38, 64), (64, 64))


def test_prediction_is_drawn_for_dense_models_alone(sources, engine):
    token = engine.keep(image())
    for name, kind in (('small', type(None)), ('boxes', np.ndarray), ('areas', np.ndarray)):
        result = engine.run(token, sources[name].label)
        drawn = view.draw_prediction(result, ('disc', 'box'))
        assert isinstance(drawn, kind), name
    labels = result.inspection.sample.pred_sem_seg.data[0].numpy()
    assert drawn.shape == (480, 800, 3)
    flat = view.draw_prediction(result, ('disc', 'box'), alpha=1)
    assert tuple(flat[3, 3]) == tuple(view.color_of(int(labels[0, 0])))


def test_numbers_of_a_point(sources, engine):
    result = engine.run(engine.keep(image()), sources['deep'].label, 160)
    maps = result.inspection.maps[1, 1]
    at = view.point_in(result, maps, (0.3, 0.6))
    assert at == (int(0.6 * maps.size[0]), int(0.3 * maps.size[1]))
    rows = view.point_rows(maps, 2, at)
    assert [row.head for row in rows] == [0, 1, 2]
    chosen = (maps.assignment[0, 2] == maps.assignment[0, 2, at[0], at[1]]).numpy()
    for row in rows:
        member = (maps.assignment[0, row.head] == row.cluster).numpy()
        assert member[at]
        assert row.members == member.sum()
        assert row.similarity == float(maps.similarity[0, row.head, at[0], at[1]])
        assert row.shared == pytest.approx((member & chosen).sum() / chosen.sum())
    assert rows[2].shared == 1


def test_overlay_is_the_library_s_and_red_stays_red(sources, engine):
    red = np.zeros((500, 700, 3), np.uint8)
    red[..., 0] = 255
    result = engine.run(engine.keep(red), sources['small'].label)
    maps = result.inspection.maps[0, 0]
    drawn = view.draw_overlay(result, maps, 1, 0.5, ('region borders',))
    expected = draw_clusters(
        red, maps, channel_order='rgb', head=1, borders=True, extent=result.inspection.extent
    )
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(view.draw_overlay(result, maps, 1, 0), red)


def test_the_nearest_that_a_model_has(sources, engine):
    deep = engine.model(sources['deep'].label)
    assert (deep.depths, deep.heads) == ([1, 2, 3, 1], [2, 3, 4, 5])
    assert deep.nearest(9, 9, 9) == (3, 0, 4)
    assert deep.nearest(-1, 5, 1) == (0, 0, 1)
    assert deep.nearest(1, 1, 2) == (1, 1, 2)


def test_what_a_model_cannot_take_is_said(sources, engine):
    label = sources['small'].label
    with pytest.raises(UserError, match='choose one of the list'):
        engine.run(engine.keep(image()), '../../etc/passwd')
    with pytest.raises(UserError, match='no longer in memory'):
        engine.run('unknown', label)
    with pytest.raises(UserError, match='32 x 32'):
        engine.run(engine.keep(image(height=20, width=20)), label)
    assert engine.run(engine.keep(image()), label).caption  # and it goes on


def test_time_limit_stops_the_model(sources):
    engine = Engine([sources['small']], Limits(seconds=0.2))
    loaded = engine.model(sources['small'].label)
    reached = []
    backbone = loaded.model.backbone
    backbone.stages[0].blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.3))
    backbone.stages[3].blocks[0].mixer.register_forward_hook(lambda *_: reached.append(True))
    with pytest.raises(UserError, match=r'longer than 0.2 s'):
        engine.run(engine.keep(image()), sources['small'].label)
    assert not reached
    with loaded.lock, pytest.raises(UserError, match='busy with images of others'):
        engine.run(engine.keep(image()), sources['small'].label)


@pytest.fixture
def session(sources, tmp_path):
    Image.fromarray(image()).save(tmp_path / 'mine.png')
    return Session(Engine([sources['small']]), tmp_path / 'pictures')


def test_nothing_is_kept_of_visitors_that_left(session, tmp_path):
    choice = Choice(session.engine.labels[0], None, 0, 0, 0)
    for _ in range(2):  # another image replaces the first
        assert session.receive(tmp_path / 'mine.png') == '120 x 72 pixels.'
        shown = session.show('a', choice, 0.5, point=(0.5, 0.5))
        assert shown.overlay.is_file()
        assert shown.sheet.is_file()
        assert 'similarity to its center <strong>0.' in shown.point
        assert len(session.engine._images) == len(session.engine._results) == 1
        assert len(list(session.folder.rglob('*.png'))) == 2
    session.close()
    assert not session.folder.exists()
    assert len(session.engine._images) == len(session.engine._results) == 0
    with pytest.raises(UserError, match='no longer in memory'):
        session.show('a', choice, 0.5)
