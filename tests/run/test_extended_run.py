"""A run folder that is asked for more impressions, for other numbers of the student, or for the same once more."""

import dataclasses
import inspect
import json
import os

import pytest
import torch
from counted import counted, shards_once
from small_models import VECTOR, distillation_recipe, open_store, synthesis_recipe, vector_classifier

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import TestSet
from zskd_fast.report import write_report
from zskd_fast.run import run_folder
from zskd_fast.run.job import Job, distill_store, run_job
from zskd_fast.run.run_folder import RunFolder, short_identity
from zskd_fast.run.summary import print_run
from zskd_fast.runtime import files
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

# Two runs that share a folder: their changes of the recipe.
RUNS = {"earlier": {}, "later": {"steps": 9}}


def _job(out, test=None, **recipe):
    return Job(
        teacher=Classifier(vector_classifier(), VECTOR),
        student=Classifier(vector_classifier(seed=5), VECTOR, role="student"),
        distillation=distillation_recipe(**recipe),
        out=out,
        seed=1,
        test=test,
    )


def _run(out, impressions=20, *, progress=False, test=None, shard_size=8, **recipe):
    synthesis = synthesis_recipe(impressions=impressions, shard_size=shard_size)
    return run_job(_job(out, test, **recipe), synthesis, progress=progress)


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _students(folder):
    return sorted(path.name for path in folder.glob("student*"))


def _short(run):
    return short_identity(run.record.identity)


# ------------------------------------------------------------------------------------------ more impressions


def test_more_impressions_extend_the_store_and_train_the_student_anew(tmp_path, capsys):
    first = _run(tmp_path / "run")
    student, name = first.student_path.read_bytes(), _short(first)
    with counted() as counts:
        run = _run(tmp_path / "run", 28, progress=True)
    assert counts["read"] == shards_once(0, 1)
    assert counts["written"] == shards_once(2, 3)  # the last shard was not full
    said = capsys.readouterr().err
    assert "holds an earlier run, which differs in:\n  num_impressions: 28 in this run, 20 in the folder\n" in said
    assert f"trained from the start; the earlier one is kept as student-{name}.safetensors." in said
    whole = _run(tmp_path / "whole", 28)
    assert run.student_path.read_bytes() == whole.student_path.read_bytes() != student
    assert (tmp_path / f"run/student-{name}.safetensors").read_bytes() == student
    assert run.record.distillation.loss == whole.record.distillation.loss
    assert (run.record.synthesis.made, Store.open(run.impressions_path).num_impressions) == (12, 28)
    assert not (tmp_path / "run/checkpoint").exists()


def test_fewer_impressions_are_refused_unless_that_run_was_finished_here(tmp_path):
    _run(tmp_path / "run", 28)
    before = _files(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds a run of 28 impressions, wanted 20; a run can only grow"):
        _run(tmp_path / "run")
    assert _files(tmp_path / "run") == before
    _run(tmp_path / "grown")
    student = _run(tmp_path / "grown", 28).student_path.read_bytes()
    earlier = _run(tmp_path / "grown")
    assert earlier.remark and earlier.student_path.read_bytes() != student


def test_an_earlier_run_is_found_again_whether_its_numbers_are_whole_or_floats(tmp_path):
    for changes in ({"temperature": 4}, {"temperature": 4, "steps": 30}):
        _run(tmp_path / "run", **changes)
    assert _run(tmp_path / "run", temperature=4).remark and _run(tmp_path / "run", temperature=4.0).remark


@pytest.mark.parametrize("stopped_at", [8, 16])
def test_an_unfinished_store_is_extended_too(tmp_path, monkeypatch, stopped_at):
    real = Synthesizer.run

    def run(self, ids, **options):
        if int(ids[0]) == stopped_at:
            raise KeyboardInterrupt
        return real(self, ids, **options)

    monkeypatch.setattr(Synthesizer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run")
    monkeypatch.setattr(Synthesizer, "run", real)
    got, wanted = _run(tmp_path / "run", 28), _run(tmp_path / "whole", 28)
    assert got.student_path.read_bytes() == wanted.student_path.read_bytes()
    assert _students(tmp_path / "run") == ["student.safetensors"]


# ------------------------------------------------------------------------------- other numbers of the student


def test_other_steps_train_the_student_anew_and_keep_the_earlier_one(tmp_path, capsys):
    first = _run(tmp_path / "run")
    student, name = first.student_path.read_bytes(), _short(first)
    with counted() as counts:
        run = _run(tmp_path / "run", steps=30, progress=True)
    assert counts["read"] == shards_once(0, 1, 2) and not counts["written"]
    said = capsys.readouterr().err
    assert "differs in:\n  student.recipe.steps: 30 in this run, 20 in the folder\n" in said
    assert f"kept as student-{name}.safetensors." in said
    assert run.student_path.read_bytes() == _run(tmp_path / "whole", steps=30).student_path.read_bytes()
    assert _students(tmp_path / "run") == [f"student-{name}.safetensors", "student.safetensors"]
    assert (tmp_path / f"run/student-{name}.safetensors").read_bytes() == student


def test_an_earlier_student_is_found_again(tmp_path):
    first = _run(tmp_path / "run")
    student, name = first.student_path.read_bytes(), _short(first)
    _run(tmp_path / "run", temperature=2.0, batch_size=4)
    before = _files(tmp_path / "run")
    job = _job(tmp_path / "run")
    again = run_job(job, synthesis_recipe(), progress=True)
    assert again.record == first.record and again.remark
    assert again.student_path.name == f"student-{name}.safetensors" and again.student_path.read_bytes() == student
    assert again.report_path.name == f"report-{name}.html"
    assert _files(tmp_path / "run") == before
    assert "impressions" in write_report(again).read_text()
    assert RunFolder.read(tmp_path / "run").record.identity.student.recipe.temperature == 2.0


def _stop_after(monkeypatch, steps):
    real, done = Distiller._update, []

    def step(self, state, *rest):
        if state.step == steps:
            raise KeyboardInterrupt
        done.append(state.step)
        real(self, state, *rest)

    monkeypatch.setattr(Distiller, "_update", step)
    return done


def test_an_unfinished_distillation_is_set_aside_and_continued_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(inspect.unwrap(Distiller.fit).__kwdefaults__, "checkpoint_seconds", 0.0)
    _stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run")
    name = _short(RunFolder.read(tmp_path / "run"))
    monkeypatch.undo()
    other = _run(tmp_path / "run", steps=9, progress=True)
    assert f"the checkpoint of the earlier one is kept as checkpoint-{name}." in capsys.readouterr().err
    assert other.student_path.read_bytes() == _run(tmp_path / "nine", steps=9).student_path.read_bytes()
    done = _stop_after(monkeypatch, None)
    run = _run(tmp_path / "run")
    assert done == list(range(12, 20))
    assert run.student_path.read_bytes() == _run(tmp_path / "whole").student_path.read_bytes()
    assert _students(tmp_path / "run") == [f"student-{_short(other)}.safetensors", "student.safetensors"]
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_distill_takes_over_its_folder_as_well(tmp_path):
    def store(impressions):
        recipe = synthesis_recipe(impressions=impressions)
        synthesizer = Synthesizer(vector_classifier(), VECTOR, recipe, seed=1)
        grown = open_store(tmp_path / "store", synthesizer)
        synthesize(synthesizer, grown, progress=False)
        return grown

    first = distill_store(_job(tmp_path / "run"), store(20), progress=False)
    student, name = first.student_path.read_bytes(), _short(first)
    second = distill_store(_job(tmp_path / "run"), store(28), progress=False)
    assert second.student_path.read_bytes() == _run(tmp_path / "whole", 28).student_path.read_bytes()
    assert (tmp_path / f"run/student-{name}.safetensors").read_bytes() == student
    third = distill_store(_job(tmp_path / "run", steps=9), store(28), progress=False)
    assert len(_students(tmp_path / "run")) == 3
    again = distill_store(_job(tmp_path / "run", steps=9), store(28), progress=False)
    assert again.remark and again.record == third.record


# ------------------------------------------------------------------------------------- the same once more


def test_a_finished_run_says_so_and_does_nothing(tmp_path, capsys):
    run = _run(tmp_path / "run", progress=True)
    print_run(run)
    assert "finished before" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = _run(tmp_path / "run", progress=True)
    print_run(again)
    printed = capsys.readouterr()
    assert printed.out.startswith("run           was finished before; nothing was left to do\n")
    assert printed.err == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_finished_run_that_is_given_a_test_set_is_only_measured(tmp_path):
    run = _run(tmp_path / "run")
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(3))
    test = TestSet(x, vector_classifier().eval()(x).argmax(dim=1), "made up")
    again = _run(tmp_path / "run", test=test)
    assert again.remark == "was finished before; only its accuracy was measured"
    assert again.record.accuracy is not None and again.record.student_sha256 == run.record.student_sha256


# ----------------------------------------------------------------------------------------- what is refused


def test_a_store_of_another_layout_is_refused_before_anything_is_set_aside(tmp_path):
    _run(tmp_path / "run")
    before = _files(tmp_path / "run")
    with pytest.raises(InputError, match=r"shard_size: 4 in this run, 8 in the store"):
        _run(tmp_path / "run", 28, shard_size=4)
    assert _files(tmp_path / "run") == before


def test_a_folder_in_which_another_process_works_is_left_alone(tmp_path):
    run = _run(tmp_path / "run")
    before = _files(tmp_path / "run")
    with run.locked(), pytest.raises(InputError, match="another process is working in"):
        _run(tmp_path / "run", 28)
    assert _files(tmp_path / "run") == before


@pytest.mark.parametrize("change", ["student", "seed"])
def test_another_student_or_seed_is_refused(tmp_path, change):
    _run(tmp_path / "run")
    student = Classifier(vector_classifier(seed=6), VECTOR, role="student")
    other = dataclasses.replace(
        _job(tmp_path / "run", steps=9), **{"student": {"student": student}, "seed": {"seed": 2}}[change]
    )
    with pytest.raises(InputError, match=r"belongs to another run; choose another --out") as error:
        run_job(other, synthesis_recipe(), progress=False)
    assert "student.recipe.steps: 9 in this run, 20 in the folder" in str(error.value)


# -------------------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """Stands for a kill at an operation on the disk."""


@pytest.mark.parametrize("asked_next", ["earlier", "later"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_kill_while_the_files_are_set_aside_loses_nothing(tmp_path, monkeypatch, finished, asked_next):
    """Killed before each rename in turn; then either run is asked for, and both end as if nothing had happened."""
    wanted = {
        name: _run(tmp_path / f"whole-{name}", **recipe).student_path.read_bytes() for name, recipe in RUNS.items()
    }
    for operation in range(6):
        folder = tmp_path / f"run-{operation}"
        with monkeypatch.context() as patch:
            patch.setitem(inspect.unwrap(Distiller.fit).__kwdefaults__, "checkpoint_seconds", 0.0)
            if finished:
                _run(folder)
            else:
                _stop_after(patch, 12)
                with pytest.raises(KeyboardInterrupt):
                    _run(folder)
        with monkeypatch.context() as patch:
            killed = _killed_before_rename(patch, operation, folder, RUNS["later"])
        steps = _steps_of(monkeypatch, folder, **RUNS[asked_next])
        if asked_next == "earlier":
            assert steps == (0 if finished else 8), operation
        other = "earlier" if asked_next == "later" else "later"
        _run(folder, **RUNS[other])
        for name, recipe in RUNS.items():
            assert _run(folder, **recipe).student_path.read_bytes() == wanted[name], (operation, name)
        if not killed:
            return
    pytest.fail("the run was killed at every operation")


def _killed_before_rename(patch, number, folder, recipe):
    """Run until RunFolder.begin is about to rename for the nth time; return whether that time came."""
    count, real, begin = iter(range(10**6)), os.replace, RunFolder.begin
    active = []

    def replace(*paths):
        if active and next(count) == number:
            raise Killed
        return real(*paths)

    def observed(self):
        active.append(True)
        begin(self)
        active.clear()

    patch.setattr(RunFolder, "begin", observed)
    patch.setattr(files.os, "replace", replace)
    patch.setattr(run_folder, "_move", lambda path, to: replace(path, to) if path.exists() else None)
    try:
        _run(folder, **recipe)
    except Killed:
        return True
    return False


def _steps_of(monkeypatch, folder, **recipe):
    with monkeypatch.context() as patch:
        done = _stop_after(patch, None)
        _run(folder, **recipe)
    return len(done)


def test_the_record_of_a_run_set_aside_is_of_the_same_format(tmp_path):
    first = _run(tmp_path / "run")
    _run(tmp_path / "run", steps=9)
    kept = json.loads((tmp_path / f"run/run-{_short(first)}.json").read_text())
    assert kept["finished"] and kept["format"] == run_folder.FORMAT
