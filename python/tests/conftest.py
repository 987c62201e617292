"""Fixtures of several test files."""

import procession
import pytest
from processes import METHODS


@pytest.fixture(params=METHODS)
def context(request):
    """The context of each start method."""
    return procession.get_context(request.param)


@pytest.fixture
def pool():
    """A pool of two forked workers."""
    with procession.get_context("fork").Pool(2) as pool:
        yield pool
