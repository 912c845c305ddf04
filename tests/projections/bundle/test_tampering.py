"""Whoever changes what was witnessed is found out, with the notary's own key in hand too. 1,000 tries, seeded."""

import io
import random
from collections import Counter
from contextlib import suppress

import pytest
from tests.projections.bundle.conftest import Exported
from tests.projections.bundle.forgeries import FORGERIES, rewrite, signed_again
from tests.projections.bundle.unpacked import Unpacked

from sightline.projections.bundle.format import BundleRefused
from sightline.projections.bundle.verify import verify
from sightline.projections.folding import Poison

FORGERIES_MADE = 1_000
SEED = 12


def test_a_thousand_forgeries_below_a_witness_are_all_found(exported: Exported) -> None:
    honest = Unpacked.of(exported.packed)
    assert verify(io.BytesIO(honest.packed()), exported.public_key, exported.witness).witnessed
    dice = random.Random(SEED)
    found: Counter[str] = Counter()
    names = list(FORGERIES)
    for number in range(FORGERIES_MADE):
        name = names[number % len(names)]
        forged = honest.copy()
        FORGERIES[name](forged, dice, dice.randrange(exported.witnessed))
        packed = _fixed_up(forged, dice, exported, with_key=name == "rewrite" or dice.random() < 0.5)
        with pytest.raises(BundleRefused):
            verify(io.BytesIO(packed), exported.public_key, exported.witness)
        found[name] += 1
    assert found.total() == FORGERIES_MADE


def _fixed_up(forged: Unpacked, dice: random.Random, exported: Exported, *, with_key: bool) -> bytes:
    """All that a forger can make fit afterwards: digests, rows, and with the key the signatures."""
    if forged.events and dice.random() < 0.9:
        with suppress(Poison, BundleRefused):  # what cannot be folded keeps the rows that it had
            forged.refolded()
    if with_key and forged.events:
        signed_again(forged, exported.signer)
    return forged.packed()


def test_without_a_witness_a_log_rewritten_with_the_key_passes(exported: Exported) -> None:
    """The control: it is the checkpoint kept outside that finds it, and nothing else could."""
    dice = random.Random(SEED)
    for _ in range(20):
        forged = Unpacked.of(exported.packed)
        rewrite(forged, dice, dice.randrange(exported.witnessed))
        forged.refolded()
        signed_again(forged, exported.signer)
        packed = io.BytesIO(forged.packed())
        assert not verify(packed, exported.public_key).witnessed
        with pytest.raises(BundleRefused):
            verify(packed, exported.public_key, exported.witness)
