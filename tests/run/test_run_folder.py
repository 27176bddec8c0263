"""The folder of a run: one run, one folder; a foreign one is refused before anything is written."""

import dataclasses
import json
import re

import pytest
from rewritten import newer, older
from small_models import run_identity

from zskd_fast.config.serialization import to_plain
from zskd_fast.errors import InputError
from zskd_fast.run.run_folder import (
    FORMAT,
    Accuracy,
    DistillationRecord,
    RunFolder,
    RunRecord,
    SynthesisRecord,
)
from zskd_fast.runtime.files import require_writable, sha256

IDENTITY = run_identity()


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_record_is_read_back_unchanged(tmp_path):
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


def test_the_same_identity_opens_the_folder_again(tmp_path):
    first = RunFolder.open_or_create(tmp_path, IDENTITY)
    first.record.synthesis.made = 7
    first.save()
    assert RunFolder.open_or_create(tmp_path, IDENTITY).record.synthesis.made == 7


def test_another_run_is_refused_with_its_differences(tmp_path):
    RunFolder.open_or_create(tmp_path, IDENTITY)
    before = (tmp_path / "run.json").read_bytes()
    other = run_identity(num_impressions=20, seed=4, betas=(1.0,))
    with pytest.raises(InputError) as error:
        RunFolder.open_or_create(tmp_path, other)
    lines = str(error.value).splitlines()
    assert "belongs to another run" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "impressions.recipe.betas: [1.0] in this run, [1.0, 0.1] in the folder",
        "impressions.seed: 4 in this run, 3 in the folder",
        "num_impressions: 20 in this run, 10 in the folder",
        "student.seed: 4 in this run, 3 in the folder",
    ]
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis.tex but no run.json"):
        RunFolder.open_or_create(tmp_path, IDENTITY)
    assert listing(tmp_path) == ["thesis.tex"]


def test_only_one_process_works_in_a_folder(tmp_path):
    run = RunFolder.open_or_create(tmp_path, IDENTITY)
    with run.locked(), pytest.raises(InputError, match="another process is working in"), run.locked():
        pass
    with run.locked():
        pass


def test_a_temporary_file_of_a_killed_run_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / "run.json.tmp").write_text("{")
    assert not RunFolder.open_or_create(tmp_path, IDENTITY).is_finished


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
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
        ('{"format": 2, "iden', "truncated, or not the record of a run"),
        ("[]", "run.json is not the record of a run$"),
        ('{"identity": {}}', "run.json is not the record of a run$"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        RunFolder.read(tmp_path)


def _record(**changes):
    accuracy = Accuracy("somewhere", 10, 0.9, 0.8)
    return {**to_plain(RunRecord(identity=IDENTITY, accuracy=accuracy)), **changes}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (_record(format=FORMAT - 1), f"got format {FORMAT - 1}, wanted {FORMAT}"),
        (_record(format=FORMAT + 1), f"got format {FORMAT + 1}, wanted {FORMAT}"),
        *(
            (older(_record(), key), f"the key {key} is missing")
            for key in (
                "identity.student.recipe.student_dropout",
                "identity.student.recipe.fresh_noise.leaves",
                "identity.impressions.recipe.total_variation",
                "identity.impressions.layer",
                "identity.num_impressions",
                "accuracy.images",
            )
        ),
        *(
            (newer(_record(), key), f"unknown key {key};")
            for key in (
                "identity.student.recipe.label_smoothing",
                "identity.impressions.recipe.start_noise.octaves",
                "identity.dataset",
                "peak_gpu_bytes",
                "accuracy.top_five",
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_of_another_version_is_called_so_and_left_alone(tmp_path, values, reason):
    """A version adds fields to a recipe, and every number of a run counts: no value may be guessed for its folder."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    before = path.read_bytes()
    sentence = f"{path} was written by another version of zskd_fast; use that version, or choose another folder: "
    for opened in (lambda: RunFolder.read(tmp_path), lambda: RunFolder.open_or_create(tmp_path, IDENTITY)):
        with pytest.raises(InputError, match=f"^{re.escape(sentence + reason)}"):
            opened()
    assert listing(tmp_path) == ["run.json"] and path.read_bytes() == before


def test_a_run_is_finished_only_while_its_student_is_unchanged(tmp_path):
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


def test_a_record_is_plain_json(tmp_path):
    RunFolder.open_or_create(tmp_path, IDENTITY)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["identity"] == to_plain(IDENTITY)
    assert (record["identity"]["student"]["seed"], record["format"]) == (3, FORMAT)


def test_the_identity_is_read_back_as_dataclasses(tmp_path):
    RunFolder.open_or_create(tmp_path, IDENTITY)
    identity = RunFolder.read(tmp_path).record.identity
    assert identity == IDENTITY
    assert identity.student.recipe.steps == 20
    longer = dataclasses.replace(identity.student, recipe=dataclasses.replace(identity.student.recipe, steps=21))
    taken_over = RunFolder.open_or_create(tmp_path, dataclasses.replace(identity, student=longer))
    assert taken_over.changes == ["student.recipe.steps: 21 in this run, 20 in the folder"]
