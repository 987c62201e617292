"""Fixtures of several test files."""

import procession
import pytest
from processes import METHODS


@pytest.fixture(params=METHODS)
def context(request):
    """The context of each start method."""
    return procession.get_context(request.param)
