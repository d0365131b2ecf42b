"""tools/engine/interface.py: optional hooks of a package, each with its default."""

import pytest

from engine import interface


def test_a_missing_hook_has_its_default_and_an_unknown_name_is_our_own_mistake():
    class Bare:
        config_keys = ("mine",)

    assert interface.offered(Bare(), "config_keys") == ("mine",)
    assert interface.offered(Bare(), "export_net") is None and interface.offered(object, "config_keys") == ()
    with pytest.raises(AttributeError, match="export_nets"):
        interface.offered(Bare(), "export_nets")
