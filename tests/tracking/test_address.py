"""Tracking addresses. Oracle: the forms that MLflow knows, and a name that is reserved for not existing (RFC 2606)."""

import pytest

from dist_resnet.tracking import address


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://localhost",
        "http://user:secret@localhost:5000/path",
        "sqlite:////tmp/not-yet.db",
        "postgresql://user:secret@db.example.org/mlflow",
        "postgresql+psycopg2://user@db/mlflow",
    ],
)
def test_what_can_be_a_tracking_address_is_taken(uri: str):
    address.check(uri)


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("htp://host", "a tracking address is http://HOST:PORT"),
        ("http://", "a tracking address is"),
        ("localhost:5000", "a tracking address is"),
        ("http://host:port", "does not parse"),
        ("http://host:99999", "does not parse"),
        (
            "http://user:secret@host.invalid",
            r"the host of the tracking address http://\*\*\*@host.invalid is not found",
        ),
    ],
)
def test_what_cannot_be_one_is_a_clear_line_without_the_password(uri: str, complaint: str):
    with pytest.raises(ValueError, match=complaint) as caught:
        address.check(uri)
    assert "secret" not in str(caught.value)
