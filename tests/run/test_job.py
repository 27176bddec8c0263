"""A job: what it costs, how it continues, and what it refuses."""

import dataclasses
import inspect

import pytest
import torch
from counted import counted, once, shards_once
from small_models import (
    IMAGE,
    VECTOR,
    distillation_recipe,
    image_classifier,
    open_store,
    same_tensors,
    synthesis_recipe,
    vector_classifier,
)
from torch import nn

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import TestSet, accuracy
from zskd_fast.run import job as job_module
from zskd_fast.run.job import Job, distill_store, run_job
from zskd_fast.run.profiling import profile_job
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

SYNTHESIS = synthesis_recipe()


def _job(out, *, student=None, teacher=None, test=None, **recipe):
    return Job(
        teacher=Classifier(vector_classifier() if teacher is None else teacher, VECTOR),
        student=Classifier(vector_classifier(seed=5) if student is None else student, VECTOR, role="student"),
        distillation=distillation_recipe(**recipe),
        out=out,
        seed=1,
        test=test,
    )


def _run(out, synthesis=SYNTHESIS, **options):
    """Run a whole job; return its models, its folder and the counts."""
    with counted() as counts:
        job = _job(out, **options)
        run = run_job(job, synthesis, progress=False)
    return job.teacher.model, job.student.model, run, counts


def _store(folder):
    """A finished store of the teacher of `_job`."""
    synthesizer = Synthesizer(vector_classifier(), VECTOR, SYNTHESIS, seed=1)
    store = open_store(folder, synthesizer)
    synthesize(synthesizer, store, progress=False)
    return store


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Costs


def test_a_fresh_run_hashes_and_probes_each_model_once_and_reads_no_shard_to_hash_it(tmp_path):
    teacher, student, run, counts = _run(tmp_path / "run")
    assert run.is_finished
    assert counts["hashes"] == counts["probes"] == once(teacher, student)
    assert counts["written"] == shards_once(0, 1, 2)
    assert not counts["read"], "a shard is hashed as it is written"


def test_a_run_with_a_finished_store_hashes_each_shard_once(tmp_path):
    _run(tmp_path / "run")
    (tmp_path / "run/student.safetensors").unlink()
    teacher, student, run, counts = _run(tmp_path / "run")
    assert run.is_finished
    assert counts["hashes"] == counts["probes"] == once(teacher, student)
    assert counts["read"] == shards_once(0, 1, 2)
    assert not counts["written"]


def test_a_run_with_half_a_store_hashes_each_shard_once(tmp_path):
    _run(tmp_path / "run")
    (tmp_path / "run/student.safetensors").unlink()
    (tmp_path / "run/impressions" / shard_name(1)).unlink()
    _, _, _, counts = _run(tmp_path / "run")
    assert counts["read"] == shards_once(0, 2)
    assert counts["written"] == shards_once(1)


def test_a_finished_run_hashes_no_shard_and_loads_its_student(tmp_path):
    _, wanted, _, _ = _run(tmp_path / "run")
    before = _files(tmp_path / "run")
    teacher, student, run, counts = _run(tmp_path / "run")
    assert run.is_finished
    assert counts["hashes"] == counts["probes"] == once(teacher, student)
    assert not counts["read"] and not counts["written"]
    assert same_tensors(student, wanted)
    assert _files(tmp_path / "run") == before


def test_distill_store_hashes_each_model_and_each_shard_once(tmp_path):
    store = _store(tmp_path / "store")
    with counted() as counts:
        job = _job(tmp_path / "run")
        run = distill_store(job, Store.open(store.folder), progress=False)
    assert run is not None and run.is_finished
    assert counts["hashes"] == counts["probes"] == once(job.teacher.model, job.student.model)
    assert counts["read"] == shards_once(0, 1, 2)
    assert not counts["written"]


def test_a_trace_hashes_and_probes_no_model_again(tmp_path):
    job = _job(tmp_path / "run")
    before = {name: value.clone() for name, value in job.student.model.state_dict().items()}
    with counted() as counts:
        profile_job(job, SYNTHESIS, tmp_path / "trace.json")
    assert not counts["hashes"] and not counts["probes"]
    assert all(torch.equal(value, before[name]) for name, value in job.student.model.state_dict().items())


# Results


def test_distill_store_trains_the_student_of_the_whole_run(tmp_path):
    _, wanted, whole, _ = _run(tmp_path / "whole")
    job = _job(tmp_path / "run")
    run = distill_store(job, _store(tmp_path / "store"), progress=False)
    assert same_tensors(job.student.model, wanted)
    assert run is not None
    assert run.record.identity == whole.record.identity
    assert run.class_similarity_path.read_bytes() == whole.class_similarity_path.read_bytes()
    assert run.impressions_path == tmp_path / "store"


def test_the_teacher_of_a_run_is_unchanged(tmp_path):
    teacher, _, _, _ = _run(tmp_path / "run")
    assert same_tensors(teacher, vector_classifier())
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_damaged_student_is_made_again(tmp_path):
    _, _, run, _ = _run(tmp_path / "run")
    wanted = run.student_path.read_bytes()
    run.student_path.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
    _run(tmp_path / "run")
    assert run.student_path.read_bytes() == wanted


def test_the_curve_takes_few_images_and_its_last_point_all_of_them(tmp_path, monkeypatch):
    """A fifth of a run went into printing accuracies."""
    measured = []

    def counted(model, inputs, labels):
        measured.append((model.role, len(inputs), len(labels)))
        return accuracy(model, inputs, labels)

    monkeypatch.setattr(job_module, "accuracy", counted)
    monkeypatch.setattr(job_module, "_CURVE_IMAGES", 20)
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(3))
    _, _, run, _ = _run(tmp_path, test=TestSet(x, vector_classifier().eval()(x).argmax(dim=1), "made up"))
    assert measured == [("student", 20, 20)] * 10 + [("teacher", 50, 50), ("student", 50, 50)]
    assert run.record.distillation.accuracies[-1] == (20, run.record.accuracy.student)


def test_a_test_set_changes_no_bit_and_is_measured_later_too(tmp_path):
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(3))
    test = TestSet(x, vector_classifier().eval()(x).argmax(dim=1), "made up")
    _, measured, with_test, _ = _run(tmp_path / "with", test=test)
    _, plain, without, _ = _run(tmp_path / "without")
    assert same_tensors(measured, plain)
    accuracy = with_test.record.accuracy
    assert accuracy is not None and (accuracy.source, accuracy.images, accuracy.teacher) == ("made up", 50, 1.0)
    assert [step for step, _ in with_test.record.distillation.accuracies] == list(range(2, 21, 2))
    assert with_test.record.distillation.accuracies[-1][1] == accuracy.student
    assert without.record.accuracy is None and without.record.distillation.accuracies == []
    _run(tmp_path / "without", test=test)
    assert RunFolder.read(tmp_path / "without").record.accuracy == accuracy


def test_an_interrupted_distillation_continues_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(inspect.unwrap(Distiller.fit).__kwdefaults__, "checkpoint_seconds", 0.0)
    _, wanted, whole, _ = _run(tmp_path / "whole")
    real, steps = Distiller._update, []

    def step(self, state, *rest):
        if len(steps) == 12:
            steps.append("interrupted")
            raise KeyboardInterrupt
        steps.append(state.step)
        real(self, state, *rest)

    monkeypatch.setattr(Distiller, "_update", step)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run")
    assert (tmp_path / "run/checkpoint").exists() and not RunFolder.read(tmp_path / "run").is_finished
    _, student, run, counts = _run(tmp_path / "run")
    assert steps == [*range(12), "interrupted", *range(12, 20)]
    assert same_tensors(student, wanted)
    assert run.record.distillation.loss == whole.record.distillation.loss
    assert run.student_path.read_bytes() == whole.student_path.read_bytes()
    assert counts["read"] == shards_once(0, 1, 2) and not counts["written"]
    assert not (tmp_path / "run/checkpoint").exists()


@pytest.mark.parametrize("part", ["_describe", "_finish"])
def test_an_interrupt_after_the_last_step_names_that_step(tmp_path, monkeypatch, part):
    """While the results are measured and written the checkpoint is still there, and it is from where a run goes on."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"zskd_fast.run.job.{part}", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^step 20 of 20$"):
        _run(tmp_path / "run")
    assert (tmp_path / "run/checkpoint").exists()
    monkeypatch.undo()
    _, _, run, counts = _run(tmp_path / "run")
    assert run.is_finished and not counts["written"]


# What is refused


def _two_layers_and_tanh():
    """With the small weights of some seeds tanh is as good as linear, and the last layer would be found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Tanh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": vector_classifier(classes=3)}, "the teacher has 4 classes, but the student has 3"),
        ({"student": vector_classifier().requires_grad_(False)}, "no parameter that requires a gradient"),
        ({"teacher": _two_layers_and_tanh()}, "more than one layer could be"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        _run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_test_set_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    for inputs, labels in (
        (torch.rand(3, 5), torch.zeros(3)),
        (torch.rand(3, 6), torch.zeros(2)),
        (torch.rand(0, 6), []),
    ):
        with pytest.raises(
            InputError, match=r"the test images have shape .* labels, wanted \['N', 6\] and N >= 1 labels"
        ):
            _run(tmp_path / "run", test=TestSet(inputs, labels, "made up"))
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path):
    _run(tmp_path / "run")
    before = _files(tmp_path / "run")
    other = dataclasses.replace(SYNTHESIS, temperature=5.0)
    with pytest.raises(
        InputError, match=r"another run; .*\n  impressions\.recipe\.temperature: 5\.0 in this run, 20\.0 "
    ):
        _run(tmp_path / "run", other)
    with pytest.raises(InputError, match=r"\n  student\.student\.sha256: "):
        _run(tmp_path / "run", student=vector_classifier(seed=6))
    assert _files(tmp_path / "run") == before


def test_a_shard_that_another_process_is_making_stops_the_run(tmp_path):
    """The student must not learn from fewer impressions; the same call continues once the shard exists."""
    _, wanted, run, _ = _run(tmp_path / "run")
    run.student_path.unlink()
    store = Store.open(run.impressions_path)
    (store.folder / shard_name(1)).unlink()
    with (
        store.claim(1),
        pytest.raises(InputError, match=r"shard-000001\.safetensors is missing .*run the synthesis again"),
    ):
        _run(tmp_path / "run")
    assert not RunFolder.read(tmp_path / "run").is_finished
    _, student, run, _ = _run(tmp_path / "run")
    assert run.is_finished and same_tensors(student, wanted)


def test_distill_store_refuses_another_teacher_and_a_damaged_store(tmp_path):
    store = _store(tmp_path / "store")
    with pytest.raises(InputError, match="impressions of another teacher"):
        distill_store(_job(tmp_path / "run", teacher=vector_classifier(seed=9)), store, progress=False)
    path = store.folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is not the file that was written"):
        distill_store(_job(tmp_path / "run"), store, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_matrix_in_place_of_the_layer_is_distilled_from_its_store(tmp_path):
    """The matrix is not in the store, so a run from the store has no class similarity to show."""
    synthesizer = Synthesizer(image_classifier(), IMAGE, SYNTHESIS, seed=1, layer=torch.eye(4))
    store = open_store(tmp_path / "store", synthesizer)
    synthesize(synthesizer, store, progress=False)
    assert store.identity.layer.startswith("matrix ")
    job = Job(
        teacher=Classifier(image_classifier(), IMAGE),
        student=Classifier(image_classifier(seed=5), IMAGE, role="student"),
        distillation=distillation_recipe(),
        out=tmp_path / "run",
        seed=1,
    )
    run = distill_store(job, store, progress=False)
    assert run is not None and run.is_finished and run.class_similarity() is None
