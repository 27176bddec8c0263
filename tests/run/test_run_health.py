"""What a run says of its impressions in record, report and summary: health, scaling and class similarity."""

import dataclasses
import re
from html import unescape

import pytest
import torch
from command_line import INPUT, MODELS, RECIPE, RUN, SYNTHESIS, main, record, workplace  # noqa: F401
from many_classes import prototype_classifier
from safetensors.torch import load_file
from small_models import IMAGE, distillation_recipe, image_classifier, synthesis_recipe
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.report import write_report
from zskd_fast.report.page import bar_classes
from zskd_fast.run.job import Job, distill_store, run_job
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.run.summary import print_run
from zskd_fast.store.store import Store
from zskd_fast.synthesis.class_similarity import class_similarity

SYNTHESIS_OF_20 = synthesis_recipe()


def _job(out, classes=4, teacher=None):
    return Job(
        teacher=Classifier(image_classifier(classes=classes) if teacher is None else teacher, IMAGE),
        student=Classifier(image_classifier(classes=classes, seed=5), IMAGE, role="student"),
        distillation=distillation_recipe(steps=2),
        out=out,
        seed=1,
    )


def _run(out, classes=4, **recipe):
    return run_job(_job(out, classes), synthesis_recipe(**recipe), progress=False)


# ----------------------------------------------------------------------------------------------------- health, scaling


def test_the_record_keeps_the_health_and_a_resumed_run_has_the_same(tmp_path):
    run = _run(tmp_path / "run")
    health = run.record.synthesis.health
    assert health is not None and health.impressions == 20
    assert RunFolder.read(run.folder).record == run.record
    run.student_path.unlink()
    (run.impressions_path / "shard-000001.safetensors").unlink()
    again = _run(tmp_path / "run")
    assert again.record.synthesis.made == 8
    assert again.record.synthesis.health == health


def test_a_student_of_a_finished_store_has_no_health_of_its_own(tmp_path, capsys):
    whole = _run(tmp_path / "run")
    run = distill_store(_job(tmp_path / "other"), Store.open(whole.impressions_path), progress=False)
    assert run is not None and run.record.synthesis.health is None
    print_run(run)
    assert "health" not in capsys.readouterr().out
    assert "reach their class" not in write_report(run).read_text("utf-8")


def test_the_summary_and_the_report_show_the_health_and_its_warning(tmp_path, capsys):
    run = _run(tmp_path / "run")  # random weights
    health = run.record.synthesis.health
    assert "nearly uniform" in health.warning
    print_run(run)
    lines = capsys.readouterr().out.splitlines()
    place = lines.index(f"health        {health}")
    assert lines[place + 1] == f"warning       {health.warning}"
    html = write_report(run).read_text("utf-8")
    assert f'<p class="warning">Warning: {health.warning.replace(chr(39), "&#39;")}</p>' in html
    assert re.search(r"<span>reach their class</span><strong>[\d.]+%</strong><span>\d of \d classes answered", html)


def test_the_warning_comes_before_the_student_learns(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zskd_fast.distillation.distiller.Distiller.fit", stop)
    for progress in (True, False):
        with pytest.raises(KeyboardInterrupt):
            run_job(_job(tmp_path / str(progress)), synthesis_recipe(), progress=progress)
        assert ("\nwarning: the teacher's answers are nearly uniform" in capsys.readouterr().err) is progress


def test_what_was_scaled_is_printed_and_reported_only_where_something_was(tmp_path, capsys):
    few, many = _run(tmp_path / "few"), _run(tmp_path / "many", classes=150)
    note = many.record.synthesis.notes["scaled"]
    assert note.startswith("for 150 classes: temperature 20 -> ")
    print_run(many)
    assert f"scaled        {note}\n" in capsys.readouterr().out
    assert "Scaled: for 150 classes" in write_report(many).read_text("utf-8")
    assert few.record.synthesis.notes == {}
    print_run(few)
    assert "\nscaled " not in capsys.readouterr().out
    assert "Scaled: for" not in write_report(few).read_text("utf-8")


def test_what_follows_from_the_two_models_is_printed_and_reported(tmp_path, capsys):
    def model():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    job = dataclasses.replace(
        _job(tmp_path / "run", teacher=model()),
        student=Classifier(model(), IMAGE, role="student"),
        distillation=distillation_recipe(steps=2, shared_layers=True),
    )
    run = run_job(job, synthesis_recipe(statistics_prior=1.0), progress=False)
    print_run(run)
    printed = capsys.readouterr().out
    page = unescape(write_report(run).read_text("utf-8"))
    for caption, note in (
        ("batch norm", "impressions drawn to the running statistics of 1 layer of the teacher"),
        ("batch norm", "labels on the statistics of each batch, student calibrated on impressions"),
        ("shared layers", "'4' of the teacher; the student's 144 features before it are matched"),
    ):
        assert f"\n{caption:<14}{note}\n" in printed
        assert f"<p>{caption.capitalize()}: {note}.</p>" in page


@pytest.mark.usefixtures("workplace")
def test_the_command_synthesize_prints_the_health_of_what_was_made_and_of_what_was_there(capsys):
    words = ["synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store"]
    printed = []
    for _ in range(2):
        assert main(*words) == 0
        lines = capsys.readouterr().out.splitlines()
        printed.append([line for line in lines if line.startswith(("health ", "warning "))])
    assert printed[0] == printed[1] and "reach their class" in printed[0][0]
    assert "nearly uniform" in printed[0][1]


@pytest.mark.usefixtures("workplace")
def test_the_command_run_prints_it_too(tmp_path, capsys):
    assert main(*RUN, "--out", "out") == 0
    assert "reach their class" in capsys.readouterr().out
    assert record(tmp_path / "out")["synthesis"]["health"]["impressions"] == 16


# ---------------------------------------------------------------------------------------------------- class similarity


def test_the_class_similarity_is_in_a_file_of_its_own(tmp_path):
    run = _run(tmp_path / "run", classes=1000)
    wanted = class_similarity(image_classifier(classes=1000))
    assert torch.equal(load_file(tmp_path / "run/class-similarity.safetensors")["class_similarity"], wanted)
    assert torch.equal(run.class_similarity(), wanted)
    assert (tmp_path / "run/run.json").stat().st_size < 20_000


def test_of_more_classes_than_a_reader_can_use_the_file_holds_the_first(tmp_path):
    run = _run(tmp_path / "run", classes=3000)
    kept = run.class_similarity()
    assert kept.shape == (2048, 2048)
    wanted = class_similarity(image_classifier(classes=3000))
    assert torch.equal(kept, wanted[:2048, :2048])  # the rows are normalized over all 3,000
    assert run.class_similarity_path.stat().st_size < 2**24 + 1000
    html = write_report(run).read_text("utf-8")
    assert "The first 100 of 3,000 classes." in html
    assert len(html) < 10**6


def test_the_map_of_few_classes_is_whole(tmp_path):
    html = write_report(_run(tmp_path / "run")).read_text("utf-8")
    assert "Class similarity" in html and "The first" not in html


def test_of_many_classes_the_bars_show_the_most_probable_ones(tmp_path):
    few, many = (_run(tmp_path / str(classes), classes=classes, steps=0, betas=(1.0,)) for classes in (20, 21))
    assert "most probable classes" not in write_report(few).read_text("utf-8")
    html = write_report(many).read_text("utf-8")
    assert "Bars of the 20 most probable classes." in html
    target = torch.zeros(1775)
    target[[3, 900, 1774]] = torch.tensor([0.2, 0.5, 0.3])
    answer = torch.zeros(1775)
    answer[7] = 1.0
    shown = bar_classes(target, answer, own_class=42)
    assert len(shown) == 20 and shown == sorted(shown)
    assert {3, 7, 42, 900, 1774} <= set(shown)
    assert bar_classes(target[:20], answer[:20], own_class=4) == list(range(20))


def test_a_damaged_file_is_named(tmp_path):
    run = _run(tmp_path / "run")
    run.class_similarity_path.write_bytes(b"none")
    with pytest.raises(
        InputError, match=r"class-similarity\.safetensors is not the class similarity of a run: .*remove"
    ):
        write_report(run)
    run.class_similarity_path.unlink()
    write_report(run)


def test_the_report_reads_only_the_shards_that_it_shows(tmp_path, monkeypatch):
    """The known fault: the first 8 * K impressions were read at once."""
    run = run_job(
        _job(tmp_path / "run", 40, prototype_classifier(40)),
        synthesis_recipe(impressions=400, shard_size=20, steps=0, batch_size=100),
        progress=False,
    )
    read, real = [], Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda store, shard: read.append(shard) or real(store, shard))
    html = write_report(run).read_text("utf-8")
    assert read == [0, 2, 4, 6, 8, 10, 12, 14]
    ids = [int(i) for i in re.findall(r'alt="impression (\d+)"', html)]
    assert sorted(ids) == [40 * row + k for row in range(8) for k in range(10)]
    assert ids == sorted(ids, key=lambda i: (i % 40, i))
