"""The promise: bytes from a peer, a log, a snapshot or a file end in a value or in a refusal, and in nothing else.

This is a short run: all inputs of the corpus, which has the attacks that once worked, and some inputs of Hypothesis.
The long run, guided by coverage, is scripts/fuzz.sh.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {"member": 25, "snapshot": 25, "commands": 25}
"""The number of examples for targets that take ten milliseconds for each; the others get 100."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A member among hostile peers writes a line for each thing that it refuses."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_finds_nothing(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_at_random_find_nothing(target: str) -> None:
    TARGETS[target](b"")  # it makes its preparations

    @settings(
        max_examples=EXAMPLES.get(target, 100), deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.binary(max_size=300), st.sampled_from([0, 1, 2, 3]))
    def find(data: bytes, how: int) -> None:
        TARGETS[target](bytes([how]) + data)

    find()
