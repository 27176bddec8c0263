"""The report is one self-contained file with the impressions, the recipe, the times and the origin of a run."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch
from small_models import (
    IMAGE,
    VECTOR,
    distillation_recipe,
    image_classifier,
    synthesis_recipe,
    vector_classifier,
)

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.serialization import to_plain
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import TestSet
from zskd_fast.report import figures, write_report
from zskd_fast.run.job import Job, run_job
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.store.store import Store


def make_run(out, spec=IMAGE, classes=4, impressions=40, build=image_classifier, test=True, name="users:build"):
    """Do a whole small run, without the command line."""
    labels = torch.arange(6) % classes
    test_set = TestSet(torch.rand(6, *spec.shape), labels, "six made-up images") if test else None
    job = Job(
        teacher=Classifier(build(classes=classes, seed=0), spec, name=name),
        student=Classifier(build(classes=classes, seed=1), spec, role="student", name=name),
        distillation=distillation_recipe(steps=4),
        out=out,
        seed=0,
        test=test_set,
    )
    return run_job(job, synthesis_recipe(impressions=impressions, steps=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def html(run) -> str:
    return write_report(run).read_text("utf-8")


class _Page(HTMLParser):
    """Collects the tags and checks that every one is closed."""

    VOID = frozenset(("meta", "img", "br", "path", "rect", "use"))

    def __init__(self, html):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(html):
    page = _Page(html)
    assert page.open == []
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import", html)


def test_each_class_is_shown_with_pictures_and_targets(html):
    page = _Page(html)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4 * 8
    assert sum(attributes.get("class") == "bars" for tag, attributes in page.tags if tag == "svg") == 4 * 8
    shown_ids = {int(picture["alt"].split()[1]) for picture in pictures}
    assert shown_ids == set(range(32))


def test_pictures_are_the_impressions(run, html):
    from zskd_fast.store.store import Store

    first = _Page(html)
    attributes = next(values for tag, values in first.tags if tag == "img")
    content = base64.b64decode(attributes["src"].partition(",")[2])
    pixels = matplotlib.image.imread(io.BytesIO(content))[:, :, 0]
    wanted = Store.open(run.impressions_path).read_shard(0).x[0, 0].numpy()
    np.testing.assert_allclose(pixels, wanted, atol=1 / 255)


def test_every_number_of_the_recipe_is_shown(run, html):
    text = re.sub(r"<[^>]+>", "|", html)
    identity = run.record.identity
    for part in (identity.impressions.input, identity.impressions.recipe, identity.student.recipe):
        for key, value in to_plain(part).items():
            for name in (key, *value) if isinstance(value, dict) else (key,):
                assert name.replace("_", " ") in text
    for key in (
        "concentration floor",
        "final learning rate fraction",
        "beta1 range",
        "noise max",
        "valid range",
    ):
        assert key in text
    assert re.search(r"\|impressions\|+40\|", text)
    assert re.search(r"\|betas\|+1, 0.1\|", text)


def test_times_accuracies_and_provenance_are_shown(run, html):
    record = run.record
    for phase in ("teacher forward", "teacher backward", "update", "student", "augmentation", "io"):
        assert phase in html
    assert f"{record.accuracy.student:.2%}" in html and f"{record.accuracy.teacher:.2%}" in html
    assert record.identity.impressions.teacher.sha256 in html
    assert torch.__version__ in html
    assert "six made-up images" in html


def test_equal_runs_give_equal_reports(run, html, tmp_path):
    assert write_report(run, tmp_path / "again.html").read_text("utf-8") == html


def test_without_test_images_no_accuracy_is_shown(tmp_path):
    html = write_report(make_run(tmp_path / "out", test=False)).read_text("utf-8")
    assert "accuracy" not in html.lower().replace("test accuracy", "accuracy") or "teacher accuracy" not in html
    assert "Accuracy on real test images" not in html


def test_only_the_first_ten_classes_are_shown(tmp_path):
    run = make_run(tmp_path / "out", classes=12, impressions=24)
    html = write_report(run).read_text("utf-8")
    assert "The first 10 of 12 classes." in html
    assert sum(tag == "img" for tag, _ in _Page(html).tags) == 10 * 2


def test_inputs_that_are_not_images_are_shown_as_rows(tmp_path):
    run = make_run(tmp_path / "out", spec=VECTOR, build=vector_classifier)
    assert sum(tag == "img" for tag, _ in _Page(write_report(run).read_text("utf-8")).tags) == 4 * 8


def test_names_are_escaped(tmp_path):
    html = write_report(make_run(tmp_path / "out", name="m:<script>alert(1)</script>")).read_text("utf-8")
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_unfinished_run_has_no_report(run, tmp_path):
    unfinished = RunFolder.open_or_create(tmp_path / "out", run.record.identity)
    with pytest.raises(InputError, match="the run has not finished"):
        write_report(unfinished)
    assert not unfinished.report_path.exists()


def test_a_run_without_class_similarity_has_no_map_of_it(run, html, tmp_path):
    other = RunFolder(shutil.copytree(run.folder, tmp_path / "run"), run.record)
    other.class_similarity_path.unlink()  # as after `distill` from a store that was made with a matrix as the layer
    other_html = write_report(other, tmp_path / "other.html").read_text("utf-8")
    assert "Class similarity" in html and "Class similarity" not in other_html
    assert _Page(other_html).open == []


def decoded(uri: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_picture_maps_the_valid_range_to_black_and_white():
    x = np.array([[[-2.0, 0.0], [2.0, 9.0]]])
    np.testing.assert_allclose(decoded(figures.picture(x, (-2.0, 2.0)))[:, :, 0], [[0, 0.5], [1, 1]], atol=0.01)


def test_picture_keeps_the_color_channels_apart():
    x = np.zeros((3, 2, 5), dtype=np.float32)
    x[1, 0, 3] = 1.0
    pixels = decoded(figures.picture(x, (0.0, 1.0)))
    assert pixels.shape[:2] == (2, 5)
    assert pixels[0, 3].tolist() == [0.0, 1.0, 0.0, 1.0] and pixels[1, 3].tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(7,), (1, 4, 6), (2, 4, 6), (5, 6), (2, 3, 4, 5)])
def test_picture_of_any_shape(shape):
    pixels = decoded(figures.picture(np.zeros(shape, dtype=np.float32), (0.0, 1.0)))
    assert pixels.shape[1] == shape[-1]


def test_bars_have_the_height_of_the_target():
    svg = figures.target_bars([0.75, 0.25, 0.0], [0.5, 0.5, 0.0], own_class=1)
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', svg)]
    assert heights == [pytest.approx(0.75 * 26), pytest.approx(0.25 * 26)]
    assert svg.index(figures.GRAY) < svg.index(figures.STUDENT)


def test_pictures_use_the_valid_range_of_the_run(tmp_path):
    spec = InputSpec((1, 8, 8), valid_range=(-4.0, 4.0))
    run = make_run(tmp_path / "out", spec=spec)
    page = _Page(write_report(run).read_text("utf-8"))
    first = next(values["src"] for tag, values in page.tags if tag == "img")
    x = Store.open(run.impressions_path).read_shard(0).x[0, 0].numpy()
    np.testing.assert_allclose(decoded(first)[:, :, 0], (x + 4) / 8, atol=1 / 255)
