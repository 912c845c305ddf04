from uuid import RFC_4122

import pytest

from sightline.domain.kernel import (
    Aggregate,
    Invalid,
    InvalidState,
    NotFound,
    Rejection,
    derived_id,
    require_sha256,
    require_within,
    reservation_id,
    storable,
)


def test_a_rejection_carries_its_code_and_what_a_client_may_see() -> None:
    refusal = Invalid("too many", most=3)
    assert (refusal.code, refusal.detail, refusal.extra) == ("rule_violated", "too many", {"most": 3})
    assert [kind.code for kind in (Rejection, NotFound, InvalidState)] == ["rejected", "not_found", "invalid_state"]


def test_the_same_parts_give_the_same_id() -> None:
    assert derived_id("a", 1) == derived_id("a", "1") != derived_id("a", 2)


def test_a_reservation_cannot_be_found_without_the_secret() -> None:
    assert reservation_id(b"k", "email", "ada@example.com") == reservation_id(b"k", "email", "ada@example.com")
    assert reservation_id(b"k", "email", "ada@example.com") != reservation_id(b"l", "email", "ada@example.com")
    assert reservation_id(b"k", "email", "x") != reservation_id(b"k", "lot", "x")


def test_a_reservation_is_a_well_formed_uuid() -> None:
    made = [reservation_id(b"k", "lot", str(n)) for n in range(50)]
    assert {(one.version, one.variant) for one in made} == {(8, RFC_4122)}
    assert len(set(made)) == 50


def test_a_fold_says_one_event_after_the_other() -> None:
    assert Aggregate("sum", "", lambda state, event: state + event).fold("a", ["b", "c"]) == "abc"


@pytest.mark.parametrize("text", ["", "f00", "A" * 64, "g" * 64, "a" * 64 + "\n", "a" * 65])
def test_a_digest_has_one_spelling(text: str) -> None:
    assert require_sha256("0a" * 32) == "0a" * 32
    with pytest.raises(Invalid):
        require_sha256(text)


def test_bounds_belong_to_what_they_bound() -> None:
    require_within("n", 0, 0, 9)
    require_within("n", 9, 0, 9)
    for outside in (-1, 10):
        with pytest.raises(Invalid, match="n is 0 to 9"):
            require_within("n", outside, 0, 9)


def test_what_the_log_would_refuse_becomes_a_space() -> None:
    assert storable("a\0b\ud800c\td", 100) == "a b c d"
    assert storable("  spaced  ", 100) == "spaced"
    assert storable("x" * 10, 3) == "xxx"
    assert storable("Ünïcode 海 🌊", 100) == "Ünïcode 海 🌊"
