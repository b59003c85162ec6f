"""Models at work: bounded, for several users, and with numbers that are right."""

import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')
from cluster_demo import view
from cluster_demo.desk import Choice, Desk
from cluster_demo.engine import Engine, Store
from cluster_demo.uploads import Limits
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.visualization import ClusterInspector, draw_clusters


@pytest.fixture
def engine(sources):
    return Engine(list(sources.values()))


def image(seed=0, height=72, width=120):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_store_drops_the_longest_unused():
    store = Store(10, weigh=len)
    store.put('a', 'xxxx')
    store.put('b', 'xxxx')
    assert store.get('a') == 'xxxx'
    store.put('c', 'xxxx')
    assert (store.get('a'), store.get('b'), store.get('c')) == ('xxxx', None, 'xxxx')
    store.put('d', 'x' * 50)  # larger than all that is allowed, yet it is what is asked for
    assert (len(store), store.get('d')) == (1, 'x' * 50)
    store.drop(lambda key: key == 'd')
    assert len(store) == 0


def test_models_in_memory_are_bounded(sources):
    engine = Engine(list(sources.values()), most_models=2)
    for label in engine.labels:
        engine.model(label)
    assert len(engine.labels) == 4
    assert len(engine._models) == 2


@pytest.mark.parametrize('name', ['small', 'boxes', 'areas'])
@pytest.mark.parametrize('size', [None, 64])
def test_maps_and_answers_are_the_inspectors(sources, name, size):
    engine = Engine([sources[name]])
    look = engine.look(engine.keep(image()), sources[name].label, size)
    loaded = engine.model(sources[name].label)
    expected = ClusterInspector(loaded.model, loaded.config, size=size)(image())
    assert look.inspection.findings == expected.findings
    assert len(expected.maps) == 4
    for key, maps in expected.maps.items():
        assert torch.equal(look.inspection.maps[key].assignment.long(), maps.assignment)
        assert torch.equal(look.inspection.maps[key].similarity, maps.similarity)
        if size is not None:
            # 64 x 38, which detectors pad to multiples of 32: 4 points a pixel at stage 0.
            assert maps.input_size in ((38, 64), (64, 64))


def test_prediction_is_drawn_for_dense_models_alone(sources, engine):
    token = engine.keep(image())
    for name, kind in (('small', type(None)), ('boxes', np.ndarray), ('areas', np.ndarray)):
        look = engine.look(token, sources[name].label)
        drawn = view.draw_prediction(look, ('disc', 'box'))
        assert isinstance(drawn, kind), name
    labels = look.inspection.sample.pred_sem_seg.data[0].numpy()
    assert drawn.shape == (480, 800, 3)
    flat = view.draw_prediction(look, ('disc', 'box'), alpha=1)
    assert tuple(flat[3, 3]) == tuple(view.color_of(int(labels[0, 0])))


def test_numbers_of_a_point(sources, engine):
    look = engine.look(engine.keep(image()), sources['deep'].label, 160)
    maps = view.maps_of(look, 1, 1, 2)
    at = view.point_in(look, maps, (0.3, 0.6))
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
    look = engine.look(engine.keep(red), sources['small'].label)
    maps = view.maps_of(look, 0, 0, 1)
    drawn = view.draw_overlay(look, maps, 1, 0.5, ('region borders',))
    expected = draw_clusters(
        red, maps, channel_order='rgb', head=1, borders=True, extent=look.inspection.extent
    )
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(view.draw_overlay(look, maps, 1, 0), red)


def test_out_of_range_names_the_range(sources, engine):
    look = engine.look(engine.keep(image()), sources['deep'].label)
    for wanted, message in (
        ((4, 0, 0), 'stages 0 to 3'),
        ((1, 2, 0), 'blocks 0 to 1'),
        ((1, 0, 3), 'heads 0 to 2'),
        ((-1, 0, 0), 'stages 0 to 3'),
    ):
        with pytest.raises(UserError, match=message):
            view.maps_of(look, *wanted)
    assert view.clamp([1, 2], [2, 3], 9, 9, 9) == (1, 1, 2)
    assert view.clamp([1, 2], [2, 3], 0, 1, 2) == (0, 0, 1)


def test_what_a_model_cannot_take_is_said(sources, engine):
    label = sources['small'].label
    with pytest.raises(UserError, match='choose one of the list'):
        engine.look(engine.keep(image()), '../../etc/passwd')
    with pytest.raises(UserError, match='no longer in memory'):
        engine.look('unknown', label)
    with pytest.raises(UserError, match='32 x 32'):
        engine.look(engine.keep(image(height=20, width=20)), label)
    assert engine.look(engine.keep(image()), label).caption  # and it goes on


def test_time_limit_stops_the_model(sources):
    engine = Engine([sources['small']], Limits(seconds=0.2))
    loaded = engine.model(sources['small'].label)
    reached = []
    backbone = loaded.model.backbone
    backbone.stages[0].blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.3))
    backbone.stages[3].blocks[0].mixer.register_forward_hook(lambda *_: reached.append(True))
    with pytest.raises(UserError, match=r'longer than 0.2 s'):
        engine.look(engine.keep(image()), sources['small'].label)
    assert not reached
    with loaded.lock, pytest.raises(UserError, match='busy with images of others'):
        engine.look(engine.keep(image()), sources['small'].label)


def test_users_at_once_get_their_own(sources):
    engine = Engine([sources['small'], sources['areas']])
    alone = {}
    for seed in range(4):
        label = engine.labels[seed % 2]
        alone[seed] = engine.look(engine.keep(image(seed)), label)
    engine.forget(None)
    found, begin = {}, threading.Barrier(4)

    def use(seed):
        begin.wait()
        token = engine.keep(image(seed))
        found[seed] = engine.look(token, engine.labels[seed % 2])

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    for seed, look in found.items():
        assert look.inspection.findings == alone[seed].inspection.findings
        for key, maps in look.inspection.maps.items():
            assert torch.equal(maps.assignment, alone[seed].inspection.maps[key].assignment)


def test_nothing_is_kept_of_visitors_that_left(sources, tmp_path):
    engine = Engine([sources['small']])
    desk = Desk(engine, tmp_path / 'shown')
    upload = tmp_path / 'abc' / 'mine.png'
    upload.parent.mkdir()
    Image.fromarray(image()).save(upload)
    token, remark = desk.receive('visitor', upload)
    assert remark == '120 x 72 pixels.'
    choice = Choice(sources['small'].label, None, 0, 0, 0)
    shown = desk.show(token, 'a', choice, 0.5, point=(0.5, 0.5))
    assert shown.overlay.is_file()
    assert shown.sheet.is_file()
    assert 'similarity to its center <strong>0.' in shown.point
    desk.leave('visitor')
    assert not upload.exists()
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
    assert len(engine._images) == len(engine._looks) == 0
    with pytest.raises(UserError, match='no longer in memory'):
        desk.show(token, 'a', choice, 0.5)


def test_files_outside_the_uploads_are_never_deleted(sources, tmp_path):
    desk = Desk(Engine([sources['small']]), tmp_path / 'server' / 'shown')
    mine, example = tmp_path / 'mine.png', tmp_path / 'server' / 'examples' / 'one.png'
    example.parent.mkdir(parents=True)
    for path in (mine, example):
        Image.fromarray(image()).save(path)
        desk.receive('visitor', path)
    desk.leave('visitor')
    assert mine.is_file()
    assert example.is_file()
