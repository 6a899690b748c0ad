"""Operators that somebody has defined before are left alone."""

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators


def test_operators_are_defined_once_whoever_did_it() -> None:
    define_torchvision_operators()
    assert define_torchvision_operators.__wrapped__() is None
