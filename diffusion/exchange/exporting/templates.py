"""Python files that a folder of diffusers contains: they are executed there, by `trust_remote_code=True`, not here."""

NETWORK, NETWORK_CLASS = "litdiffusion_unet", "LitDiffusionUNet"
PIPELINE, PIPELINE_CLASS = "pipeline", "LitDiffusionPipeline"
WRAPPER = '''"""The network of a LitDiffusion model for diffusers. Needs the package: pip install litdiffusion"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusion.support.specs import build


class LitDiffusionUNet(ModelMixin, ConfigMixin):
    """A network by its spec. class_labels are labels (B,) or context vectors (B, D); without them, no condition."""

    @register_to_config
    def __init__(self, network, sample_size, in_channels, out_channels):
        super().__init__()
        self.net = build(dict(network))

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        clock = torch.as_tensor(timestep, device=sample.device).to(sample.dtype).reshape(-1).expand(sample.shape[0])
        out = self.net(sample, clock, class_labels)[:, : self.config.out_channels]
        return UNet2DOutput(sample=out) if return_dict else (out,)
'''
CONDITIONAL = '''"""The pipeline of a LitDiffusion model for diffusers: conditions and classifier-free guidance."""

import torch
from diffusers import DDIMScheduler, ImagePipelineOutput, UNet2DModel, {base}
from diffusers.utils.torch_utils import randn_tensor


class LitDiffusionPipeline({base}):
    """{base} of a conditional network; all defaults are those of the run that was exported."""

    def __init__(
        self, unet, scheduler, num_classes=0, context_dim=0, class_names=(), guidance_scale=1.0,
        num_inference_steps=50, eta=0.0,
    ):
        super().__init__(unet, scheduler)
        self.register_to_config(
            num_classes=num_classes, context_dim=context_dim, class_names=list(class_names),
            guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, eta=eta,
        )

    def number(self, label):
        """The index of a class or context feature, given by number or name."""
        names, kinds = self.config.class_names, self.config.num_classes or self.config.context_dim
        if label in names:
            return names.index(label)
        if isinstance(label, str) or not 0 <= int(label) < kinds:
            raise ValueError(f"class_labels: {{label!r}}: labels are 0 .. {{kinds - 1}} or of {{', '.join(names)}}")
        return int(label)

    def condition(self, labels):
        """Labels (B,) or context vectors (B, D) from one label, several, or vectors as a tensor."""
        D = self.config.context_dim
        if D and torch.is_tensor(labels) and labels.is_floating_point():
            if labels.shape[1:] != (D,):
                raise ValueError(f"class_labels: expected vectors (B, {{D}}), got {{tuple(labels.shape)}}")
            return labels.to(self._execution_device, self.unet.dtype)
        labels = labels.reshape(-1).tolist() if torch.is_tensor(labels) else labels
        labels = labels if isinstance(labels, (list, tuple)) else [labels]
        y = torch.tensor([self.number(label) for label in labels], device=self._execution_device)
        return torch.nn.functional.one_hot(y, D).to(self.unet.dtype) if D else y

    @torch.no_grad()
    def __call__(
        self, class_labels=None, guidance_scale=None, batch_size=None, generator=None, num_inference_steps=None,
        eta=None, use_clipped_model_output=True, output_type="pil", return_dict=True,
    ):
        """Pictures of the given classes.

        Args:
            class_labels: a class by number or name, one for each picture, or context vectors (B, D); None is
                "no condition".
            guidance_scale: 0 is no condition, 1 the condition without guidance, above 1 exaggerates: 1 + w of the
                papers.
            batch_size: number of pictures; by default the number of labels.
            Others: see {base}.
        """
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        y = None if class_labels is None else self.condition(class_labels)
        n = batch_size or (1 if y is None else len(y))
        if y is not None and len(y) not in (1, n):
            raise ValueError(f"class_labels: {{len(y)}} for batch_size {{n}}; give one per picture, or one")
        y = y if y is None or len(y) == n else y.repeat_interleave(n, 0)
        C, size = self.unet.config.in_channels, self.unet.config.sample_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        x = randn_tensor((n, C, *size), generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        free = None
        if isinstance(self.unet, UNet2DModel):  # its last row is "no condition"
            free = torch.full((n,), self.config.num_classes, device=x.device)
        self.scheduler.set_timesteps(num_inference_steps or self.config.num_inference_steps)
        more = {{}}
        if isinstance(self.scheduler, DDIMScheduler):
            more["eta"] = self.config.eta if eta is None else eta
            more["use_clipped_model_output"] = use_clipped_model_output
        for t in self.progress_bar(self.scheduler.timesteps):
            out = self.unet(x, t, class_labels=free if y is None else y).sample
            if y is not None and scale != 1:
                worse = self.unet(x, t, class_labels=free).sample
                out = torch.cat([torch.lerp(worse[:, :C], out[:, :C], scale), out[:, C:]], dim=1)
            x = self.scheduler.step(out, t, x, generator=generator, **more).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
'''
