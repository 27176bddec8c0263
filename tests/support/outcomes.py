"""Made-up outcomes of `zskd-fast repro`."""

import dataclasses

from zskd_fast.repro.results import Outcome


def outcome(**changes):
    plain = Outcome(
        setup="fast-mnist",
        way="zskd",
        seed=0,
        device="cpu",
        threads=2,
        torch="2",
        recipe="fast-medium",
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
