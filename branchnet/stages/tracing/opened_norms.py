"""timm's BatchNorm with an activation inside, opened so that it is traced as the two layers that others write.

Both halves keep the names of their parameters, so state dicts stay as they are.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

_FUSED = ("timm.layers.norm_act", "BatchNormAct2d")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class OpenedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm, then its children `drop` and `act`; or BatchNorm alone, as graphs call it."""

    drop: nn.Module
    act: nn.Module

    def _get_name(self) -> str:
        return _FUSED[1]

    def forward(self, x: Tensor, normalise_only: bool = False) -> Tensor:
        """Normalise, and unless only that is asked for, drop and activate."""
        if normalise_only:
            return super().forward(x)
        if isinstance(x, fx.Proxy):
            path = x.tracer.path_of_module(self)
            x = x.tracer.create_proxy("call_module", path, (x,), {"normalise_only": True})
        else:
            x = super().forward(x)
        for layer in (self.drop, self.act):
            x = x if type(layer) is nn.Identity else layer(x)
        return x


def open_norms(root: nn.Module) -> nn.Module:
    """The borrowed structure, with its fused norms opened; those with hooks, which see both layers as one, stay.

    Args:
        root: a borrowed structure, changed in place.

    Returns:
        The same structure.
    """
    for module in root.modules():
        kind = type(module)
        if (kind.__module__, kind.__name__) == _FUSED and not any(getattr(module, hooks) for hooks in _HOOKS):
            module.__class__ = OpenedBatchNorm2d
    return root
