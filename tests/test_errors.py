"""What a user is told when something is refused."""

from __future__ import annotations

import pytest

from mmard.errors import LONGEST, Refused, needs_extra, unknown


def test_a_refusal_says_where_expected_got_and_the_mend_in_one_line() -> None:
    error = Refused("Budget(eps=8)", expected="eps in (0, 1]", got="8", mend="did you mean 8/255?")
    assert str(error) == "Budget(eps=8): expected eps in (0, 1], got 8; did you mean 8/255?"
    assert (error.where, error.expected, error.got, error.mend) == (
        "Budget(eps=8)",
        "eps in (0, 1]",
        "8",
        "did you mean 8/255?",
    )


def test_a_refusal_without_a_mend_ends_where_it_ends() -> None:
    assert str(Refused("here", expected="a", got="b")) == "here: expected a, got b"


def test_a_refusal_is_a_value_error_so_that_other_programs_catch_it() -> None:
    with pytest.raises(ValueError, match="expected a, got b"):
        raise Refused("here", expected="a", got="b")


@pytest.mark.parametrize(
    ("name", "nearest"), [("rlsad", "rslad"), ("rsladd", "rslad"), ("adad", "adaad"), ("trade", "trades")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    error = unknown("method", name, ["trades", "rslad", "adaad"])
    assert isinstance(error, Refused)
    assert error.mend == f"did you mean {nearest!r}?"
    assert "one of adaad, rslad, trades" in str(error)
    assert repr(name) in str(error)


def test_an_unknown_name_far_from_all_gets_no_guess() -> None:
    assert unknown("method", "xyz", ["rslad"]).mend == ""


def test_a_missing_package_is_answered_with_the_command_that_brings_it() -> None:
    message = str(needs_extra("pyarrow", "data", "reading parquet"))
    assert message.startswith("reading parquet: expected the package 'pyarrow'")
    assert message.endswith('pip install "mmard[data]"')


@pytest.mark.parametrize(
    "error",
    [Refused("a", expected="b", got="c", mend="d"), unknown("method", "x", ["y"]), needs_extra("p", "e", "w")],
)
def test_every_refusal_is_one_line(error: Refused) -> None:
    assert "\n" not in str(error)


def test_a_refusal_repeats_no_more_than_a_person_reads() -> None:
    said = str(Refused("x" * 5000, expected="a name", got="y" * 5000))
    assert len(said) < 3 * LONGEST
    assert str(Refused("a", expected="b", got="c" * LONGEST)) == f"a: expected b, got {'c' * LONGEST}"
