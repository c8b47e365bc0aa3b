"""Values of component configs that would be found wrong only in the middle of a run, found before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.errors import ConfigError, IncompatibleError, Refusals, check_float, check_int, unknown
from accel.samplers.noise_schedule import is_flow, noise_schedule
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub.kinds import Kind

LARGEST = 4096  # cells of latents, or pixels, on a side
CELLS = 128  # of latents on a side, where a denoiser is for no size of its own: 1024 pixels, in most classes
# In the config of an autoencoder, a list of its levels, and how many of these do not halve the image.
LEVELS = {"block_out_channels": 1, "encoder_block_out_channels": 1, "temperal_downsample": 0}
MOTION = "motion_adapter"
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction", "trigflow")
SPACINGS = ("leading", "linspace", "trailing")


def check(folder: Path) -> None:
    """ConfigError for a pipeline whose scheduler, VAE or image size cannot be what the files say."""
    with Refusals() as refusals:
        refusals.ask(image_size, folder)
        refusals.ask(_check_scheduler, folder, hub_files.config_of(folder, "scheduler"))
        if "vae" in hub_index.components(folder):
            config = hub_files.config_of(folder, "vae")
            for name in ("scaling_factor", "shift_factor"):
                if name in config and (name, config[name]) != ("shift_factor", None):
                    low = -1e6 if name == "shift_factor" else 1e-6
                    refusals.ask(check_float, f"{name} in the config of {folder / 'vae'}", config[name], low, 1e6)


def image_size(folder: Path) -> tuple[int, int]:
    """Height and width that a pipeline generates by itself: what its class says in pixels, else its denoiser's
    `sample_size` (or diffusers' 128) in cells of the autoencoder."""
    kind, config = hub_index.kind_of(folder), hub_files.config_of(folder, hub_files.denoiser_of(folder))
    if kind.side is not None:
        return kind.side, kind.across or kind.side
    if kind.frames and isinstance(config.get("sample_height"), int) and isinstance(config.get("sample_width"), int):
        return tuple(_pixels(folder) * config[name] for name in ("sample_height", "sample_width"))
    size = config.get("sample_size", CELLS if kind.sized else None)
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    for side in sides:
        check_int(f"sample_size in the config of {folder / hub_files.denoiser_of(folder)}", side, 1, LARGEST)
    factor = _pixels(folder) if "vae" in hub_index.components(folder) else 1
    return sides[0] * factor, sides[1] * factor


def check_frames(folder: Path, kind: Kind, frames: int | None) -> None:
    """ConfigError unless the number of frames is given for what makes videos, no more than its motion modules were
    made for, and for nothing else."""
    if frames is None and kind.frames:
        raise ConfigError(f"a {kind.name} makes videos, and suite.frames is empty; say how many, such as 17.")
    if frames is not None and not kind.frames:
        raise ConfigError(f"{kind.name} makes pictures; leave suite.frames out.")
    if frames is None or MOTION not in hub_index.components(folder):
        return
    most = hub_files.config_of(folder, MOTION).get("motion_max_seq_length")
    if isinstance(most, int) and frames > most:
        raise ConfigError(f"suite.frames is {frames}, and the motion modules of {folder} know {most}; use fewer.")


def check_encoders(folder: Path, kind: Kind) -> None:
    """ConfigError for a network that sees an image by an encoder which is never loaded (Wan 2.1's)."""
    seen = "image_dim" if kind.edits else None
    if seen and hub_files.config_of(folder, hub_files.denoiser_of(folder)).get(seen) is not None:
        raise ConfigError(
            f"the network of {folder} sees its image by an image encoder, too ({seen} in its config), which suite hub "
            "does not load; use a model that is shown the image's latents alone, such as Wan 2.2's."
        )


def _pixels(folder: Path) -> int:
    """Pixels of a side of one latent cell: every level of the autoencoder but the first halves the image."""
    config = hub_files.config_of(folder, "vae")
    for name, first in LEVELS.items():
        if isinstance(levels := config.get(name), list) and levels:
            return 2 ** (len(levels) - first)
    raise ConfigError(
        f"the config of {folder / 'vae'} has none of {', '.join(LEVELS)} as a list, which tell its levels."
    )


def _check_scheduler(folder: Path, config: dict[str, Any]) -> None:
    where = f"in the config of {hub_files.place_of(folder, 'scheduler')}"
    cls = hub_index.components(folder)["scheduler"][1]
    with Refusals() as refusals:
        try:
            noise_schedule(config)
        except IncompatibleError:  # of another kind of model, which its own scheduler knows
            pass
        except (ConfigError, TypeError, ValueError) as error:
            refusals.add(ConfigError(f"the noise schedule {where}: {error}"))
        if cls.startswith("FlowMatch") and not is_flow(config):
            refusals.add(ConfigError(f"the scheduler is a {cls} by the index, but the values {where} are no flow's."))
        for name, allowed in (("prediction_type", PREDICTIONS), ("timestep_spacing", SPACINGS)):
            if config.get(name) is not None and config[name] not in allowed:
                refusals.add(unknown(f"{name} {where}", str(config[name]), allowed))
        total = config.get("num_train_timesteps", 1000)
        if config.get("steps_offset") is not None:
            refusals.ask(check_int, f"steps_offset {where}", config["steps_offset"], 0, 100)
        betas = config.get("trained_betas")
        if isinstance(betas, list) and len(betas) != total:
            refusals.add(ConfigError(f"trained_betas {where} are {len(betas)}; needed: {total}, one a timestep."))
