"""The transformer blocks that diffusers' caches go to, and what those add to the hidden states: residuals by block, and
MagCache's ratios of all blocks together from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Denoise, Node
from accel.core.method import Method
from accel.errors import IncompatibleError

# diffusers.hooks._common._ALL_TRANSFORMER_BLOCK_IDENTIFIERS
BLOCK_LISTS = ("temporal_transformer_blocks", "single_transformer_blocks", "transformer_blocks", "blocks",
               "visual_transformer_blocks", "layers")  # fmt: skip


class Ratios(Method):
    """Attached while MagCache's ratios are measured: the plain network, and what its blocks add to each token."""

    def __init__(self) -> None:
        self.norms: dict[tuple, torch.Tensor] = {}
        self.found: dict[int, list[torch.Tensor]] = {}

    def means(self) -> list[float]:
        """The ratio of each step to the one before; of the first step 1."""
        return [1.0] + [float(torch.cat(self.found[step]).mean()) for step in sorted(self.found)]

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, entry = node.clock, {}
        blocks = blocks_of(node.net)

        def before(module, args, kwargs):
            entry["x"] = entered(args, kwargs)

        def after(module, args, output):
            norm = residual_norm(entry["x"], hidden_states(module, output))
            key = clock.slot, clock.call, len(norm)
            if clock.step and key in self.norms:
                self.found.setdefault(clock.step, []).append(magnitude_ratio(norm, self.norms[key]))
            self.norms[key] = norm

        node.undo.callback(blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        node.undo.callback(blocks[-1].register_forward_hook(after).remove)
        return inner


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The transformer blocks that diffusers' hooks go to, in its order: those in lists of certain names."""
    lists = [m for n, m in net.named_children() if n in BLOCK_LISTS and isinstance(m, nn.ModuleList)]
    return [block for own in lists for block in own]


def refuse_between_blocks(what: str, nets: Mapping[str, nn.Module], beside: Mapping[str, nn.Module]) -> None:
    """IncompatibleError where networks `beside` a transformer add their tensors between its blocks, which `what` passes
    by together: what it keeps of them has those in it, and they would be added again."""
    for net in nets.values():
        if beside and blocks_of(net):
            raise IncompatibleError(
                f"{what} passes blocks of {type(net).__name__} by together, and a {next(iter(beside))} adds to what is "
                "between them, which would be lost or counted twice; use cache=fora or cache=taylorseer, or cache=none."
            )


def residual_norm(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """|after - before| of each token (B N,), hidden states (B, N, C) before the first block and after the last."""
    return (after - before).float().norm(dim=-1).flatten()


def magnitude_ratio(norm: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Of each token's residual norm to that of the step before (MagCache, eq. 4, before the mean over tokens)."""
    return norm / (last + 1e-8)


def entered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


def hidden_states(block: nn.Module, output: Any) -> torch.Tensor:
    """The hidden states in what a block returns, which may be several tensors."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    at = TransformerBlockRegistry.get(type(block)).return_hidden_states_index
    return output[at] if isinstance(output, tuple) else output


def passed(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor) -> Any:
    """What a block would return if it did nothing but leave `hidden` as the hidden states, and the text as it came."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    known = TransformerBlockRegistry.get(type(block))
    at, text = known.return_hidden_states_index, known.return_encoder_hidden_states_index
    if text is None:
        return hidden
    output = [None] * (max(at, text) + 1)
    output[at] = hidden
    output[text] = known._get_parameter_from_args_kwargs(known.encoder_hidden_states_argument_name, args, kwargs)
    return tuple(output)
