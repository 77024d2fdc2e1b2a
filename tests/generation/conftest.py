# SPDX-License-Identifier: Apache-2.0
"""A model that writes captions, and how servers are tested."""

import pytest

from tests.generation import tiny_vlm
from tests.servers.conftest import quick, said  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def vlm(tmp_path_factory):
    """Folder of a tiny LLaVA."""
    return tiny_vlm.write_vlm(tmp_path_factory.mktemp("vlm"))
