"""A reason is told in a sentence that people understand."""

import pytest

from ml.sentences import sentence, subject


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("Days from the last basket to it. Null if none.", "Days from the last basket to it"),
        ("Days from the last basket to it; at least 1", "Days from the last basket to it"),
        ("Spend in the last 28 days, USD", "Spend in the last 28 days, USD"),
        ("Share of promoted lines, e.g. on display. From 0 to 1.", "Share of promoted lines, e.g. on display"),
        ("Orders from the U.S. in 2.5 years! Null without.", "Orders from the U.S. in 2.5 years"),
        ("Was it returned? Null if not known", "Was it returned"),
        ("what the\n  customer says of itself.\n", "What the customer says of itself"),
        ("Spend incl. VAT and excl. Discounts", "Spend incl. VAT and excl. Discounts"),
        ("", "Days since last basket"),
        (" ", "Days since last basket"),
    ],
)
def test_a_feature_is_told_by_the_first_sentence_of_its_description_or_its_name(description: str, told: str) -> None:
    assert subject("days_since_last_basket", description) == told


def test_a_reason_says_value_and_direction() -> None:
    assert sentence("Days away", "34", 0.5) == "Days away: 34, which raises the score."
    assert sentence("Days away", None, -0.5) == "Days away: not known, which lowers the score."


def test_a_reason_of_a_category_speaks_for_or_against_the_class() -> None:
    assert sentence("Days away", "34", 0.5, "never") == "Days away: 34, which speaks for never."
    assert sentence("Days away", "34", -0.5, "never") == "Days away: 34, which speaks against never."
