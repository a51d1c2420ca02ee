"""The figures that a training leaves: curves and plots of its last evaluation, and no failure for one of them."""

import logging

import pytest
from PIL import Image

from detr_hf.evaluation import plotting
from detr_hf.training import drawing

from .scenes import Scenes, trainer

OPTIONS = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_strategy": "no", "max_steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was evaluated at its end, as `detr-hf train` does."""
    done = trainer(tmp_path_factory.mktemp("run"), evaluation=Scenes(3, noise=False), **OPTIONS)
    done.train()
    done.evaluate()
    return done


def test_curves_and_plots_lie_in_the_output_folder(run, monkeypatch):
    saved, logged, nothing = [], [], plotting.SavedPlots("x", [], {}, [])
    monkeypatch.setattr(drawing, "draw_training", lambda log: logged.append(log) or Image.new("RGB", (9, 9)))
    monkeypatch.setattr(plotting, "save_plots", lambda *given: saved.append(given) or nothing)
    lines = run.save_figures()
    folder = drawing.Path(run.args.output_dir, "figures")
    assert [path.name for path in folder.iterdir()] == ["curves.png"] and str(folder / "curves.png") in lines[0]
    assert logged == [run.state.log_history]
    found, place, _, about = saved[0]
    assert (
        place == folder
        and about["step"] == 2
        and found.metrics == pytest.approx(run.last_evaluation.summary, nan_ok=True)
    )
    assert (
        found.queries is not None and len(found.queries) == len(found.detections) == 3 * run.model.config.num_queries
    )


def test_no_run_fails_for_a_figure(run, monkeypatch, caplog):
    def broken(*_):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(drawing, "draw_training", broken)
    monkeypatch.setattr(plotting, "save_plots", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert run.save_figures() == []
    assert "The curves were not drawn" in caplog.text and "pip install 'detr-hf[viz]'" in caplog.text
    assert "The plots of the evaluation were not drawn: division by zero" in caplog.text


@pytest.mark.parametrize(("missing", "drawn"), [("matplotlib", False), ("hotcoco", True)])
def test_what_is_not_installed_is_said_in_one_line(missing, drawn, run, monkeypatch, caplog):
    monkeypatch.setattr(plotting, "find_spec", lambda name: None if name == missing else True)
    monkeypatch.setattr(drawing, "draw_training", lambda log: Image.new("RGB", (9, 9)))
    with caplog.at_level(logging.WARNING):
        assert len(run.save_figures()) == drawn
    assert len(caplog.records) == 1 and f"Plots need {missing}" in caplog.text and "pip install" in caplog.text


def test_an_evaluation_of_an_earlier_step_is_not_taken_for_the_last(run):
    assert run.whole_evaluation().threshold == 0.5 and run.whole_evaluation("night") is None
    known = {"eval": (1, *run._found_last["eval"][1:])}
    run._found_last = known
    run.evaluate(metric_key_prefix="test")
    assert run.whole_evaluation() is None
    run.evaluate()
    assert run.whole_evaluation() is not None
