"""The name of a manager in its certificate."""

from __future__ import annotations

import pytest

from warren_raft.certificates.identity import parse_uri, uri_of


@pytest.mark.parametrize("node_id", ["m1", "a.b_c-D", "x" * 64])
def test_a_name_is_read_back(node_id: str) -> None:
    assert parse_uri(uri_of("prod-7.example", node_id)) == ("prod-7.example", node_id)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "warren://prod/manager/",
        "warren:///manager/m1",
        "warren://prod/worker/m1",
        "warren://prod/manager/m1/",
        "warren://prod/manager/m1\n",
        "warren://prod/manager/..",
        "warren://prod@evil/manager/m1",
        "warren://prod/manager/" + "x" * 65,
        "Warren://prod/manager/m1",
        "spiffe://prod/manager/m1",
        "warren://prod/manager/m\u0661",
    ],
)
def test_any_other_name_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a manager"):
        parse_uri(uri)
