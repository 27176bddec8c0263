"""exp, log, sin and cos of csrc/math: within 2 ulp of 80-bit results, and IEEE results for special values."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
KINDS = {"f32": np.float32, "f64": np.float64}


@pytest.fixture(scope="module", params=["plain", "avx2"])
def probe(request, tmp_path_factory):
    """The header compiled as scalar code, where fma is a library call, and as AVX2 code, as in the kernels."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if request.param == "avx2" and not ("avx2" in cpu and "fma" in cpu):
        pytest.skip("this machine has no AVX2")
    library = tmp_path_factory.mktemp("probe") / f"{request.param}.so"
    isa = ["-mavx2", "-mfma"] if request.param == "avx2" else []
    flags = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *isa]
    source = ROOT / "tests" / "native" / "elementary_probe.cpp"
    subprocess.run(
        [compiler, *flags, "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))

    def call(name: str, x: np.ndarray, kind: str) -> np.ndarray:
        y = np.full(x.shape, np.nan, dtype=KINDS[kind])
        getattr(loaded, f"{name}_{kind}")(
            x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.size)
        )
        return y

    return call


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest error in units in the last place of the wanted value."""
    spacing = np.spacing(np.abs(want.astype(got.dtype))).astype(np.longdouble)
    return float(np.max(np.abs(got.astype(np.longdouble) - want) / spacing))


@pytest.mark.parametrize("kind", KINDS)
def test_exp_is_within_2_ulp_down_to_subnormal_results(probe, kind):
    low, high = {"f32": (-103.0, 88.7), "f64": (-744.0, 709.7)}[kind]
    x = np.random.default_rng(0).uniform(low, high, 200_000).astype(KINDS[kind])
    assert ulps(probe("exp", x, kind), np.exp(x.astype(np.longdouble))) <= 2
    near_zero = np.random.default_rng(1).uniform(-0.5, 0.5, 100_000).astype(KINDS[kind])
    assert ulps(probe("exp", near_zero, kind), np.exp(near_zero.astype(np.longdouble))) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_exp_of_special_values(probe, kind):
    x = np.array([0.0, -0.0, -np.inf, np.inf, np.nan, -1e30, 1e30], dtype=KINDS[kind])
    np.testing.assert_array_equal(probe("exp", x, kind), [1, 1, 0, np.inf, np.nan, 0, np.inf])


@pytest.mark.parametrize("kind", KINDS)
def test_exp_nonpositive_is_within_2_ulp_or_flushed_to_zero(probe, kind):
    low = {"f32": -86.0, "f64": -707.0}[kind]
    x = np.random.default_rng(0).uniform(low, 0, 200_000).astype(KINDS[kind])
    assert ulps(probe("exp_nonpositive", x, kind), np.exp(x.astype(np.longdouble))) <= 2
    edges = np.array([0.0, -np.inf, np.nan, -1e30, 2 * low], dtype=KINDS[kind])
    np.testing.assert_array_equal(probe("exp_nonpositive", edges, kind), [1, 0, np.nan, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_exp_over_a_temperature_is_within_2_ulp_for_the_rounded_temperature(probe, kind):
    low = 20 * {"f32": -86.0, "f64": -707.0}[kind]
    x = np.random.default_rng(0).uniform(low, 0, 200_000).astype(KINDS[kind])
    per_bit = np.longdouble(KINDS[kind](np.log2(np.e) / 20))
    assert ulps(probe("exp_over_20", x, kind), np.exp2(x.astype(np.longdouble) * per_bit)) <= 2
    edges = np.array([0.0, -np.inf, np.nan, -1e30, 2 * low], dtype=KINDS[kind])
    np.testing.assert_array_equal(probe("exp_over_20", edges, kind), [1, 0, np.nan, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_log_is_within_2_ulp(probe, kind):
    rng = np.random.default_rng(0)
    exponents = {"f32": (-37, 38), "f64": (-300, 300)}[kind]
    wide = 10 ** rng.uniform(*exponents, 200_000)
    near_one = 1 + rng.uniform(-0.01, 0.01, 100_000)
    for x in (wide.astype(KINDS[kind]), near_one.astype(KINDS[kind])):
        assert ulps(probe("log", x, kind), np.log(x.astype(np.longdouble))) <= 2
    edges = np.array([1.0, np.inf, np.nan], dtype=KINDS[kind])
    np.testing.assert_array_equal(probe("log", edges, kind), [0, np.inf, np.nan])


WORDS = np.concatenate(
    [
        np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64),
        np.array([0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30 - 1, 3 * 2**30, 2**32 - 1]),
    ]
).astype(np.uint32)


@pytest.mark.parametrize("kind", KINDS)
def test_sin_and_cos_of_a_fraction_of_a_turn(probe, kind):
    angle = 2 * np.pi * (WORDS.astype(np.longdouble) / 2**32)
    eps = np.finfo(KINDS[kind]).eps
    for name, want in (("sin_turn", np.sin(angle)), ("cos_turn", np.cos(angle))):
        error = np.abs(probe(name, WORDS, kind).astype(np.longdouble) - want).max()
        assert error <= 2 * eps


@pytest.mark.parametrize("kind", KINDS)
def test_log_of_a_uniform_is_within_3_ulp_at_both_ends(probe, kind):
    u = (WORDS.astype(np.longdouble) + 0.5) / 2**32
    assert ulps(probe("log_uniform", WORDS, kind), np.log(u)) <= 3  # one more, because U itself is rounded
    below_one = np.arange(2**32 - 1000, 2**32, dtype=np.uint64).astype(np.uint32)
    want = np.log1p(-((2**32 - 1 - below_one.astype(np.longdouble)) + 0.5) / 2**32)
    got = probe("log_uniform", below_one, kind)
    assert ulps(got, want) <= 2
    assert len(np.unique(got)) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_stays_inside_the_open_interval(probe, kind):
    edges = np.array([0, 2**32 - 1], dtype=np.uint32)
    low, high = probe("uniform", edges, kind)
    bits = {"f32": 23, "f64": 32}[kind]
    assert low == 0.5 / 2**bits and high == 1 - 0.5 / 2**bits
