"""The model card says what the folder holds, and takes success rates only from a Result about these weights."""

from __future__ import annotations

import pytest

from lithe import api, card, checkpoint, result, surgery
from lithe.surgery import KeepLayers


@pytest.fixture
def folder(tmp_path):
    data = api.data("fake")
    model = api.load("pi:pico")
    model.config.cameras = data.cameras
    model.fit_to(data.stats, data.tasks, data.cameras)
    student = surgery.cut(model, [KeepLayers("trunk", (0, 3))])
    return checkpoint.save(student, tmp_path / "small", method={"name": "finetune"}, step=5, steps=9)


def evaluation(tmp_path, weights, **settings):
    success = {"rate": 0.75, "n": 8, "low": 0.41, "high": 0.93}
    row = {"policy": "student", "success": success, "tasks": {"reach-red": {"success": success}}}
    document = result.make("eval", "fake", {"policies": {"student": {"weights": weights}}, **settings}, [row])
    return result.save(document, tmp_path / "eval.json")


def test_the_card_tells_what_is_inside(folder):
    text = card.write(folder).read_text()
    assert "| layers | 2 |" in text
    assert "`KeepLayers` [0, 3]" in text
    assert "5 of 9 steps: **an interim state" in text
    assert "Success" not in text


def test_the_card_names_lerobot_where_lerobot_can_open_the_folder(folder):
    assert "library_name: lerobot" in (text := card.write(folder).read_text()) and "--policy.path=small" in text
    (folder / "policy_postprocessor.json").unlink()
    assert "lerobot" not in card.write(folder).read_text()


def test_success_comes_from_a_result_about_these_weights(folder, tmp_path):
    digest = checkpoint.read_card(folder)["sha256"]
    text = card.write(folder, result=evaluation(tmp_path, digest)).read_text()
    assert "| reach-red | 75.0 | 41.0 to 93.0 | 8 |" in text
    for settings in ({"execution": "async"}, {"sim_options": {"moving": "jump"}}):
        other = evaluation(tmp_path, digest, **settings)
        with pytest.raises(ValueError, match="real time or with a moving target, which is no plain success on fake"):
            card.write(folder, result=other)
    with pytest.raises(ValueError, match="not an evaluation of these weights"):
        card.write(folder, result=evaluation(tmp_path, "0" * 64))
    checkpoint.load(folder)  # the card is no part of what is checked
