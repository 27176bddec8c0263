"""Made-up outcomes of `zskd-fast repro`."""

import dataclasses
from typing import Any

from zskd_fast.repro.results import Outcome


def outcome(**changes: Any) -> Outcome:
    plain = Outcome(
        setup="fast-mnist",
        recipe="fast",
        change="",
        method="zskd",
        seed=0,
        device="cpu",
        threads=2,
        torch="2",
        teacher_accuracy=0.99,
        student_accuracy=0.98,
        agreement_impressions=0.9,
        agreement_noise=None,
        impressions=1000,
        image_steps=60_000,
        student_images=128_000,
        synthesis_seconds=10.0,
        distillation_seconds=20.0,
        version="0",
    )
    return dataclasses.replace(plain, **changes)
