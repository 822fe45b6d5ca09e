"""Seeded runs end where they ended when losses.json was written."""

import golden_losses as golden
import pytest


@pytest.mark.parametrize("run", golden.RUNS)
def test_a_seeded_run_reproduces_its_golden_losses(run):
    written = golden.read()
    expected = [float.fromhex(loss) for loss in written["losses"][run]]
    found = golden.losses(run)
    assert len(set(expected)) == len(expected) == golden.STEPS
    if written["belongs_to"] == golden.belongs_to():
        assert found == expected
    else:
        # Other kernels round otherwise, and a step builds on the last one. Losses are sums over standardised
        # advantages, which may cancel, so their size is compared with 1: with AVX2 instead of AVX512 they moved by
        # 1e-5 in the first ten steps. A changed formula or order of prompts is still seen.
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
