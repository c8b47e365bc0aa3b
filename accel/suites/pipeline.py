"""`PixelPipeline`: unconditional or class-conditional pixel-space diffusion as a plain diffusers pipeline."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from accel.core.devices import send
from accel.errors import ConfigError


class PixelPipeline(DiffusionPipeline):
    """Samples images with a UNet2DModel-like denoiser and any diffusers scheduler.

    Runs `DDPMPipeline`/`DDIMPipeline` checkpoints (such as google/ddpm-cifar10-32) as they are; with a
    class-conditional denoiser the last class embedding is the null label of classifier-free guidance:
    eps = eps(x, null) + s (eps(x, c) - eps(x, null)), s = `guidance_scale`, evaluated as one doubled batch
    [unconditional, conditional] when s > 1.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def null_label(self) -> int | None:
        """Index of the null class, or None for an unconditional model."""
        classes = self.unet.config.num_class_embeds
        return None if classes is None else classes - 1

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.unet

    def _predict(self, inputs: torch.Tensor, t: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.unet(inputs, t, **condition, return_dict=False)[0]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int] | torch.Tensor | None = None,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Images for `class_labels` (B,), or `batch_size` of them for an unconditional model.

        `generator`: one, or one for each sample (then sample i does not depend on the batch it is in).
        `latents`: initial unit-variance noise (B, C, H, W). `output_type`: `pil`, `np`, or `pt` (float, [-1, 1],
        not clipped). Raises ConfigError for labels the model does not have.
        """
        labels = self._labels(class_labels, batch_size, latents)
        guided = guidance_scale > 1.0 and self.null_label is not None
        x = self._initial_noise(len(labels), generator, latents)

        device, dtype = x.device, self.denoiser.dtype  # each of both, asked of a model, walks through all its modules
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        # FlowMatch schedulers start from unit noise and take the sample as it is, without saying so.
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        scale_model_input = getattr(self.scheduler, "scale_model_input", lambda sample, t: sample)
        step_kwargs = {"generator": generator} if _accepts_generator(self.scheduler) else {}
        condition = self._condition(send(labels, device), guided)
        for t in self.progress_bar(self.scheduler.timesteps):
            inputs = torch.cat([x, x]) if guided else x
            inputs = scale_model_input(inputs, t)
            predicted = self._predict(inputs.to(dtype), t, condition).to(x.dtype)
            if guided:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + guidance_scale * (cond - uncond)
            x = self.scheduler.step(predicted, t, x, return_dict=False, **step_kwargs)[0]

        images = x if output_type == "pt" else self._to_images(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, class_labels, batch_size, latents) -> torch.Tensor:
        if self.null_label is None:
            count = batch_size or (len(latents) if latents is not None else 1)
            return torch.zeros(count, dtype=torch.long)
        if class_labels is None:
            raise ConfigError(f"class_labels is missing; this model needs labels in 0..{self.null_label - 1}.")
        labels = torch.as_tensor(class_labels, dtype=torch.long).flatten()
        if len(labels) == 0 or labels.min() < 0 or labels.max() > self.null_label:
            raise ConfigError(f"class_labels are {labels.tolist()}; allowed: at least one in 0..{self.null_label - 1}.")
        return labels

    def _initial_noise(self, count, generator, latents) -> torch.Tensor:
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, self.denoiser.config.in_channels, height, width)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self.device, dtype=self.denoiser.dtype)
        if tuple(latents.shape) != shape:
            raise ConfigError(f"latents have shape {tuple(latents.shape)}; allowed: {shape}.")
        return latents.to(self.device)  # its own dtype: the sampler's arithmetic is not the network's

    def _condition(self, labels: torch.Tensor, guided: bool) -> dict[str, torch.Tensor]:
        if self.null_label is None:
            return {}
        if guided:
            labels = torch.cat([torch.full_like(labels, self.null_label), labels])
        return {"class_labels": labels}

    def _to_images(self, x: torch.Tensor, output_type: str):
        images = (x / 2 + 0.5).clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(images) if output_type == "pil" else images


class PixelTransformerPipeline(PixelPipeline):
    """The same with a `DiTTransformer2DModel` on pixels. Its timesteps are one for each row, as DiTPipeline gives them.

    DiTPipeline itself decodes by an autoencoder and takes 1000 for the null label, whatever the model's classes are.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer, scheduler):
        DiffusionPipeline.__init__(self)
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @property
    def null_label(self) -> int:
        return self.transformer.config.num_embeds_ada_norm  # the transformer adds the null class to its table itself

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.transformer

    def _predict(self, inputs: torch.Tensor, t: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = torch.as_tensor(t, device=inputs.device).expand(len(inputs))
        return self.transformer(inputs, rows, **condition, return_dict=False)[0]


def _accepts_generator(scheduler) -> bool:
    from inspect import signature

    return "generator" in signature(scheduler.step).parameters
