"""What tracing can't see or would get wrong, found before any batch: hooks, and values overwritten in place."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.registry import registry

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refuse_hooks(model: nn.Module) -> None:
    """Raise ``UnsupportedError`` if a layer has hooks: tracing would run them once, or never."""
    for name, module in model.named_modules():
        hooks = [kind.strip("_").replace("_", " ") for kind in _HOOKS if getattr(module, kind)]
        if hooks:
            raise UnsupportedError(
                f"layer {name!r} ({type(module).__name__}) has {hooks[0]}, which would not run. "
                "Remove them, or use curvature.backend=autograd."
            )


def refuse_overwriting(root: nn.Module, node: fx.Node, what: str) -> None:
    """Raise ``UnsupportedError`` if a node that works in place overwrites what is read later.

    Rules work out of place, which is the same unless the overwritten value, or one that it is a view of, is read again.
    """
    order = {other: i for i, other in enumerate(node.graph.nodes)}
    changed = node.args[0]
    while isinstance(changed, fx.Node):
        readers = [user for user in changed.users if order[user] > order[node]]
        if readers:
            raise UnsupportedError(
                f"{what} overwrites {changed.name!r}, which {readers[0].name!r} reads later. "
                "Make it work out of place, or use curvature.backend=autograd."
            )
        changed = changed.args[0] if _views(root, changed) else None


def _views(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        rule = registry().modules.get(type(root.get_submodule(str(node.target))))
    else:
        tables: dict[str, Any] = {"call_function": registry().functions, "call_method": registry().methods}
        rule = tables.get(node.op, {}).get(node.target)
    return rule is not None and rule.views
