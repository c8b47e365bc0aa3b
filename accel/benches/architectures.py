"""MACs of cached evaluations on the true shapes of known networks, without weights: on torch's meta device.

Every number is counted twice: `measured` by running the cache's own view of the network, and `parts` by adding what the
full evaluation spent in the modules that theory says are live. `dense` leaves out the products of queries, keys and
values, as the counters of the papers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from accel.benches.architectures_table import write_architectures
from accel.benches.options import parser
from accel.caching.decoder_view import DecoderView
from accel.caching.inheritance import FeatureInheritance
from accel.caching.unet_view import ShallowView, skip_count
from accel.records import Results, digest

ATTENTION = ("scaled_dot_product", "bmm")  # operators between activations


@dataclass(frozen=True)
class Architecture:
    """A diffusers network by class name and config, and the arguments of one call of one sample."""

    name: str
    cls: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    condition: Callable[[], dict[str, Any]]

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network and its inputs, both on the meta device."""
        import diffusers

        with torch.device("meta"):
            net = getattr(diffusers, self.cls)(**self.config).eval()
            sample = "hidden_states" if "Transformer" in self.cls else "sample"
            inputs = {sample: torch.empty(1, *self.shape), "timestep": torch.zeros(1), **self.condition()}
        return net, inputs | {"return_dict": False}


_CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "DDPM CIFAR-10",
            "UNet2DModel",
            {
                "sample_size": 32,
                "block_out_channels": (128, 256, 256, 256),
                "layers_per_block": 2,
                "attention_head_dim": None,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                "downsample_padding": 0,
                "flip_sin_to_cos": False,
                "freq_shift": 1,
            },
            (3, 32, 32),
            dict,
        ),
        Architecture(
            "Stable Diffusion 1.5",
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280),
                "layers_per_block": 2,
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
                "down_block_types": _CROSS,
                "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            },
            (4, 64, 64),
            lambda: {"encoder_hidden_states": torch.empty(1, 77, 768)},
        ),
        Architecture(
            "Stable Diffusion XL",
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "layers_per_block": 2,
                "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20),
                "transformer_layers_per_block": (1, 2, 10),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            },
            (4, 128, 128),
            lambda: {
                "encoder_hidden_states": torch.empty(1, 77, 2048),
                "added_cond_kwargs": {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)},
            },
        ),
        *(
            Architecture(
                f"DiT-XL/2 {size}",
                "DiTTransformer2DModel",
                {
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "in_channels": 4,
                    "out_channels": 8,
                    "num_layers": 28,
                    "sample_size": size // 8,
                    "patch_size": 2,
                    "num_embeds_ada_norm": 1000,
                },
                (4, size // 8, size // 8),
                lambda: {"class_labels": torch.zeros(1, dtype=torch.long)},
            )
            for size in (256, 512)
        ),
    )
}


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: all of them, and those of convolutions and linear layers alone."""

    total: int
    dense: int

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.total + other.total, self.dense + other.dense)


def counted(run: Callable[[], Any]) -> tuple[Any, dict[str, Macs]]:
    """Result of `run`, and MACs by module name (`Global`: all)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = run()
    return result, {name: _macs(ops) for name, ops in counter.get_flop_counts().items()}


def _macs(ops: dict[Any, int]) -> Macs:
    dense = sum(n for op, n in ops.items() if not any(a in str(op) for a in ATTENTION))
    return Macs(sum(ops.values()) // 2, dense // 2)


def cached_costs(architecture: Architecture) -> Iterator[dict[str, Any]]:
    """One row for each cache of a network: method, live part, and Macs of full, measured and parts."""
    net, inputs = architecture.build()
    root = type(net).__name__
    if "Transformer" in architecture.cls:
        _, spent = counted(lambda: net(**inputs))
        for match, live in ((r"(attn1|ff)$", "neither"), (r"ff$", "attn1"), (r"attn1$", "ff")):
            names = FeatureInheritance("unit", match).modules(net, architecture.name)
            measured = _without(net, names, inputs)
            gone = sum((spent.get(f"{root}.{n}", Macs(0, 0)) for n in names), Macs(0, 0))
            full = spent["Global"]
            parts = Macs(full.total - gone.total, full.dense - gone.dense)
            yield {"method": "reuse of units", "live": live, "full": full, "measured": measured, "parts": parts}
        return
    for skips in range(1, skip_count(net) + 1):
        view = ShallowView(net, skips)
        (_, spent), stored = view.capture(lambda: counted(lambda: net(**inputs)))
        _, found = counted(lambda view=view, stored=stored: view.forward(stored, **inputs))
        parts = _sum(spent, root, live_modules(net, skips))
        yield {
            "method": "DeepCache",
            "live": skips,
            "full": spent["Global"],
            "measured": found["Global"],
            "parts": parts,
        }
    decoder = DecoderView(net)
    (_, spent), features = decoder.capture(lambda: counted(lambda: net(**inputs)))
    _, found = counted(lambda: decoder.forward(features, **inputs))
    up = [f"up_blocks.{i}" for i in range(len(net.up_blocks))]
    parts = _sum(spent, root, [*(n for n in _outside(net) if n != "conv_in"), *up])
    yield {
        "method": "encoder propagation",
        "live": "decoder",
        "full": spent["Global"],
        "measured": found["Global"],
        "parts": parts,
    }


def live_modules(net: nn.Module, skips: int) -> list[str]:
    """Names of the modules of a UNet that run when `skips` skip connections are live, by the layout alone."""
    down, up = [], []
    for b, block in enumerate(net.down_blocks):
        layers = [
            [f"down_blocks.{b}.resnets.{i}", f"down_blocks.{b}.attentions.{i}"] for i in range(len(block.resnets))
        ]
        down += layers + ([[f"down_blocks.{b}.downsamplers.0"]] if block.downsamplers is not None else [])
    for b in reversed(range(len(net.up_blocks))):
        for i in reversed(range(len(net.up_blocks[b].resnets))):
            up.append([f"up_blocks.{b}.resnets.{i}", f"up_blocks.{b}.attentions.{i}"])
    live = [name for layer in down[: skips - 1] + up[:skips] for name in layer]
    blocks = dict.fromkeys(name.split(".")[1] for layer in up[:skips] for name in layer)
    return [*_outside(net), *live, *(f"up_blocks.{b}.upsamplers.0" for b in blocks)]


def _outside(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_children() if name not in ("down_blocks", "mid_block", "up_blocks")]


def _sum(spent: dict[str, Macs], root: str, names: list[str]) -> Macs:
    return sum((spent.get(f"{root}.{name}", Macs(0, 0)) for name in names), Macs(0, 0))


def _without(net: nn.Module, names: list[str], inputs: dict[str, Any]) -> Macs:
    """MACs of one call in which the modules return what they returned before."""
    kept: dict[str, torch.Tensor] = {}
    hooks = [net.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: kept.update({n: o})) for n in names]
    with torch.no_grad():
        net(**inputs)
    for hook in hooks:
        hook.remove()
    for name in names:
        net.get_submodule(name).forward = lambda *a, n=name, **k: kept[n]
    _, found = counted(lambda: net(**inputs))
    for name in names:
        del net.get_submodule(name).forward
    return found["Global"]


def main(words: Sequence[str]) -> None:
    """`accel bench architectures`: records and tables/macs_architectures.md."""
    args = parser(__doc__, "bench architectures").parse_args(words)
    results, place = Results(args.results), 0
    for architecture in track(ARCHITECTURES.values(), "architectures"):
        for row in cached_costs(architecture):
            costs = {key: asdict(row[key]) for key in ("full", "measured", "parts")}
            found = {"network": architecture.name, "method": row["method"], "live": row["live"], **costs}
            results.save({"kind": "macs", "id": digest(found), "place": place, **found})
            place += 1
    for path in write_architectures(results):
        print(path.read_text())
