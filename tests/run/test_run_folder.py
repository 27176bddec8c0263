"""The folder of a run: one run, one folder; a foreign one is refused before anything is written."""

import json

import pytest

from zskd_fast.errors import InputError
from zskd_fast.run.run_folder import (
    Accuracy,
    DistillationRecord,
    RunFolder,
    SynthesisRecord,
    require_writable,
)
from zskd_fast.runtime.files import sha256

IDENTITY = {"seed": 0, "recipe": {"synthesis": {"steps": 3, "betas": (1.0, 0.1)}}}


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_record_comes_back(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "a/b", IDENTITY)
    run.record.synthesis = SynthesisRecord(20, 4.0, {"update": 1.5})
    run.record.distillation = DistillationRecord(2.0, {"student": 1.0}, [3.0, 2.0], [0.1, 0.2], [(2, 0.5)])
    run.record.accuracy = Accuracy("somewhere", 10, 0.9, 0.8)
    run.record.environment = {"build": {"isa": "avx2"}}
    run.save()
    read = RunFolder.read(tmp_path / "a/b").record
    assert read == run.record
    assert read.synthesis.rate == 5.0
    assert read.distillation.accuracies == [(2, 0.5)]


def test_same_identity_opens_the_folder_again(tmp_path):
    first = RunFolder.open_or_create(tmp_path, IDENTITY)
    first.record.synthesis.made = 7
    first.save()
    assert RunFolder.open_or_create(tmp_path, IDENTITY).record.synthesis.made == 7


def test_another_run_is_refused_with_its_differences(tmp_path):
    RunFolder.open_or_create(tmp_path, IDENTITY)
    before = (tmp_path / "run.json").read_bytes()
    other = {"seed": 1, "recipe": {"synthesis": {"steps": 3, "betas": (1.0,)}}}
    with pytest.raises(InputError) as error:
        RunFolder.open_or_create(tmp_path, other)
    lines = str(error.value).splitlines()
    assert "belongs to another run" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "recipe.synthesis.betas: [1.0] in this run, [1.0, 0.1] in the folder",
        "seed: 1 in this run, 0 in the folder",
    ]
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis.tex but no run.json"):
        RunFolder.open_or_create(tmp_path, IDENTITY)
    assert listing(tmp_path) == ["thesis.tex"]


def test_only_one_process_works_in_a_folder(tmp_path):
    run = RunFolder.open_or_create(tmp_path, IDENTITY)
    with run.at_work(), pytest.raises(InputError, match="another process is at work"), run.at_work():
        pass
    with run.at_work():
        pass


def test_a_file_killed_half_way_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / "run.json.tmp").write_text("{")
    assert not RunFolder.open_or_create(tmp_path, IDENTITY).is_finished


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/sub: Not a directory"):
        RunFolder.open_or_create(tmp_path / "file/sub", IDENTITY)


def test_require_writable_leaves_nothing(tmp_path):
    require_writable(tmp_path / "a/b/c")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not the folder of a run: it has no run.json"),
        ('{"format": 1, "iden', "truncated, or not the record of a run"),
        ("[]", "got format None, wanted 1"),
        ('{"format": 2}', "got format 2, wanted 1"),
        ('{"format": 1}', "not the record of a run"),
        ('{"format": 1, "identity": {}, "surprise": 3}', "not the record of a run.*surprise"),
    ],
)
def test_damaged_record(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        RunFolder.read(tmp_path)


def test_finished_means_that_the_student_is_still_as_it_was_written(tmp_path):
    run = RunFolder.open_or_create(tmp_path, IDENTITY)
    run.student_path.write_bytes(b"weights")
    run.record.student_sha256 = sha256(b"weights")
    assert not run.is_finished
    run.record.finished = True
    assert run.is_finished
    run.student_path.write_bytes(b"other")
    assert not run.is_finished
    run.student_path.unlink()
    assert not run.is_finished


def test_record_is_plain_json(tmp_path):
    RunFolder.open_or_create(tmp_path, IDENTITY)
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["seed"] == 0
