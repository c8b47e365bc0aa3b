"""Tiny random pipelines of the classes that came after those of `hub_tiny`, of the parts that their users have on disk:
text encoders and autoencoders of their own classes included.

MODERN: by kind, what an experiment of it says beside the defaults: `side` of its images, `sequence` length.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import diffusers as d
import hub_tiny as tiny
import torch

WIDTH = 16  # of text encoders


@dataclass(frozen=True)
class Small:
    """How small an experiment of a kind is: pixels a side (None: it has one size), max_sequence_length if it has one,
    and frames of a video."""

    side: int | None = 16
    sequence: int | None = 24
    frames: int | None = None


MODERN = {
    "sd_pag": Small(sequence=None),
    "sdxl_pag": Small(sequence=None),
    "sd3_pag": Small(),
    "pixart_sigma_pag": Small(),
    "sana_pag": Small(32),
    "lcm": Small(sequence=None),
    "kandinsky3": Small(64, None),
    "hunyuan_dit": Small(32, None),
    "hunyuan_image": Small(16, None),
    "flux_schnell": Small(),
    "flux_kontext": Small(),
    "flux2_klein": Small(),
    "qwen_image": Small(32, 256),  # its template comes first
    "z_image": Small(),
    "sana": Small(32),
    "lumina": Small(32),
    "lumina2": Small(32),
    "chroma": Small(),
    "hidream": Small(None, 16),
    "aura_flow": Small(),
    "cogview3": Small(),
    "cogview4": Small(),
    "ovis": Small(sequence=192),
}


# Those that ask for packages: accelerate, ftfy.
PACKAGED = {"krea2": Small(32), "prx": Small(sequence=None)}

# What only a sampler of its own can drive.
ON_AN_ARC = {"sana_sprint": Small(32)}

# Those that begin at images: the kinds of experiments with them.
IMAGES = {
    "sd_img2img": Small(sequence=None),
    "sdxl_img2img": Small(sequence=None),
    "flux_img2img": Small(),
    "sd_inpaint": Small(sequence=None),
    "sd_inpaint9": Small(sequence=None),
}

# Those that edit images.
EDITS = {"sd_pix2pix": Small(sequence=None), "sdxl_pix2pix": Small(sequence=None)}

# Those that are told by images of a condition.
CONTROLS = {"flux_control": Small()}
CONTROL_NETS = {
    "sd": "sd_control_net", "sdxl": "sdxl_control_net", "sd3": "sd3_control_net", "flux": "flux_control_net",
    "sdxl_union": "sdxl_union_net", "flux_union": "flux_union_net",
}  # fmt: skip
MODE = 2  # the kind of the conditions where there are several

# Those that make videos, tests of which load the first two from disk: others ask for accelerate, or know no sampler.
VIDEOS = {
    "animate_diff": Small(None, None, 4),
    "ltx": Small(32, 24, 9),
    "wan": Small(16, 24, 5),
    "wan22": Small(16, 24, 5),
    "hunyuan_video": Small(16, 24, 5),
    "cogvideox": Small(16, 16, 9),
}


# Those that make videos of images.
OF_IMAGES = {
    "ltx_i2v": Small(32, 24, 9),
    "cogvideox_i2v": Small(16, 16, 9),
    "wan_i2v": Small(16, 24, 5),
}


def _tokenizer(words: bool = False, **settings: Any):
    """In the place of those of language models: a tokenizer of letters, or of the `words` of the prompts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = sorted({*" ".join(tiny.PROMPTS).split(), *string.digits}) if words else string.printable
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *known])}
    own = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    own.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    own.pre_tokenizer = (
        pre_tokenizers.Split(Regex(r"\s+"), "removed") if words else pre_tokenizers.Split(Regex("."), "isolated")
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<pad>",
        model_max_length=512, **settings,
    )  # fmt: skip
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


_TEXT = {"hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 120, "max_position_embeddings": 512,
         "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}  # fmt: skip


def _text(name: str, **changes: Any):
    """A language model of transformers: the class `name` with the config of its family."""
    import transformers

    config = getattr(transformers, name.replace("ForCausalLM", "").replace("Model", "") + "Config")
    return getattr(transformers, name)(config(**_TEXT | changes))


def _flow(**settings: Any):
    return d.FlowMatchEulerDiscreteScheduler(**settings)


def _flow_vae(levels: int = 2, **settings: Any):
    own = {"block_out_channels": (4,) * levels, "down_block_types": ("DownEncoderBlock2D",) * levels,
           "up_block_types": ("UpDecoderBlock2D",) * levels, "shift_factor": 0.1, "layers_per_block": 1}  # fmt: skip
    return tiny._vae(**own | settings)


def _with(cls: type, pipe: Any, **parts: Any):
    """A pipeline of another class with the parts of `pipe`, those that its class leaves out as None, and `parts`."""
    import inspect

    names = inspect.signature(cls.__init__).parameters
    return cls(**{name: part for name, part in pipe.components.items() if name in names} | parts)


def sd_pag():
    return _with(d.StableDiffusionPAGPipeline, tiny._sd(), requires_safety_checker=False)


def sdxl_pag():
    return _with(d.StableDiffusionXLPAGPipeline, tiny._sdxl(), add_watermarker=False)


def sd3_pag():
    return _with(d.StableDiffusion3PAGPipeline, tiny._sd3(), pag_applied_layers="blocks.1")


def pixart_sigma_pag():
    return _with(d.PixArtSigmaPAGPipeline, tiny._pixart_sigma(), pag_applied_layers="blocks.1")


def sana_pag():
    return _with(d.SanaPAGPipeline, sana(), pag_applied_layers="transformer_blocks.0")


def lcm():
    betas = {k: tiny._BETAS[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    return _with(
        d.LatentConsistencyModelPipeline, tiny._sd(time_cond_proj_dim=8), scheduler=d.LCMScheduler(**betas),
        requires_safety_checker=False,
    )  # fmt: skip


def hunyuan_image():
    """Saved with guiders, as its users have it; what a recipe runs has none of them."""
    qwen = qwen_image()
    net = d.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=WIDTH, text_embed_2_dim=8, rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=8, scaling_factor=0.5,
    )  # fmt: skip
    guider = d.AdaptiveProjectedMixGuidance()
    return d.HunyuanImagePipeline(
        _flow(shift=5.0), vae, qwen.text_encoder, qwen.tokenizer, tiny._t5_encoder(), tiny._t5_tokenizer(), net,
        guider, guider,
    )  # fmt: skip


def kandinsky3():
    net = d.Kandinsky3UNet(
        time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=2, block_out_channels=(8, 8),
        cross_attention_dim=8, encoder_hid_dim=8,
    )  # fmt: skip
    movq = d.VQModel(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=4, latent_channels=4, num_vq_embeddings=4, vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return d.Kandinsky3Pipeline(tiny._t5_tokenizer(), tiny._t5_encoder(), net, d.DDPMScheduler(), movq)


def hunyuan_dit():
    from transformers import BertConfig, BertModel, BertTokenizer

    net = d.HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=WIDTH, cross_attention_dim_t5=8, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.printable])}
    bert = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    scheduler = d.DDPMScheduler(
        beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    return d.HunyuanDiTPipeline(
        tiny._vae(block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                  up_block_types=("UpDecoderBlock2D",) * 4),
        BertModel(bert), BertTokenizer(words, model_max_length=77), net, scheduler, None, None, False,
        tiny._t5_encoder(), tiny._t5_tokenizer(),
    )  # fmt: skip


def flux_schnell():
    return tiny._flux(guidance_embeds=False)


def flux_kontext():
    return _with(d.FluxKontextPipeline, tiny._flux())


_DOUBLE = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}


def flux2_klein():
    net = d.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **_DOUBLE,
    )  # fmt: skip
    vae = d.AutoencoderKLFlux2(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip
    encoder = _text(
        "Qwen3ForCausalLM", num_hidden_layers=28, tie_word_embeddings=True
    )  # its layers 9, 18 and 27 are used
    return d.Flux2KleinPipeline(
        _flow(shift=3.0, use_dynamic_shifting=True), vae, encoder, _tokenizer(), net, is_distilled=False
    )


def qwen_image():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    net = d.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    text = {k: v for k, v in _TEXT.items() if k != "head_dim"}
    rope = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(text_config=text | {"rope_scaling": rope}, vision_config=vision)
    return d.QwenImagePipeline(
        _flow(use_dynamic_shifting=True), _qwen_vae(), Qwen2_5_VLForConditionalGeneration(config), _tokenizer(), net
    )


def _qwen_vae():
    return d.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )


def z_image():
    net = d.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for parameter in net.parameters():  # some begin as whatever was in memory
        torch.nn.init.normal_(parameter, 0, 0.1)
    return d.ZImagePipeline(_flow(shift=3.0), _flow_vae(), _text("Qwen3Model"), _tokenizer(), net)


def sana():
    net = d.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=32,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
    )  # fmt: skip
    return d.SanaPipeline(
        _tokenizer(words=True, padding_side="right"), _gemma(), _deep_compression(), net, _flow(shift=3.0)
    )


def sana_sprint():
    net = d.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=32,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
        guidance_embeds=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    return d.SanaSprintPipeline(
        _tokenizer(words=True, padding_side="right"), _gemma(), _deep_compression(), net, d.SCMScheduler()
    )


def _deep_compression():
    blocks = ("ResBlock", "EfficientViTBlock")
    return d.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_act_fns="silu",
    )  # fmt: skip


def _gemma():
    return _text("Gemma2Model", query_pre_attn_scalar=8)


def lumina():
    net = d.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3, num_kv_heads=1,
        multiple_of=16, ffn_dim_multiplier=None, cross_attention_dim=WIDTH,
    )  # fmt: skip
    torch.nn.init.normal_(net.pad_token)  # it begins as whatever was in memory
    return d.LuminaPipeline(net, _flow(), _flow_vae(4), _text("GemmaModel"), _tokenizer())


def lumina2():
    net = d.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(512, 128, 128),
        cap_feat_dim=WIDTH,
    )  # fmt: skip
    return d.Lumina2Pipeline(net, _flow(shift=6.0), _flow_vae(4), _gemma(), _tokenizer())


def chroma():
    net = d.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, joint_attention_dim=8, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
        approximator_hidden_dim=8, approximator_layers=1, **_DOUBLE,
    )  # fmt: skip
    return d.ChromaPipeline(_flow(), _flow_vae(), tiny._t5_encoder(), tiny._t5_tokenizer(), net)


def hidream():
    net = d.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[8, WIDTH], text_emb_dim=16, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1, 0, 1),
        force_inference_output=True,
    )  # fmt: skip
    return d.HiDreamImagePipeline(
        _flow(shift=3.0), _flow_vae(), tiny._clip_encoder(True), tiny._clip_tokenizer(), tiny._clip_encoder(True),
        tiny._clip_tokenizer(), tiny._t5_encoder(), tiny._t5_tokenizer(), _text("LlamaForCausalLM"), _tokenizer(), net,
    )  # fmt: skip


def aura_flow():
    net = d.AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=8, pos_embed_max_size=256,
    )  # fmt: skip
    return d.AuraFlowPipeline(tiny._t5_tokenizer(), tiny._t5_encoder(), _flow_vae(), net, _flow(shift=1.73))


def cogview3():
    net = d.CogView3PlusTransformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, out_channels=4, text_embed_dim=8,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return d.CogView3PlusPipeline(
        tiny._t5_tokenizer(), tiny._t5_encoder(), tiny._vae(), net, d.CogVideoXDDIMScheduler()
    )


def cogview4():
    net = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4, rope_axes_dim=(256, 256), sample_size=8,
    )  # fmt: skip
    shifting = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    return d.CogView4Pipeline(
        _tokenizer(), _text("GlmModel"), _flow_vae(), net, _flow(use_dynamic_shifting=True, **shifting)
    )


def ovis():
    net = d.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8), **_DOUBLE
    )
    return d.OvisImagePipeline(_flow(use_dynamic_shifting=True), _flow_vae(), _text("Qwen3Model"), _tokenizer(), net)


def krea2():
    from transformers import Qwen3VLConfig, Qwen3VLModel

    net = d.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=_TEXT | {"rope_parameters": rope}, vision_config=vision))
    return d.Krea2Pipeline(
        _flow(use_dynamic_shifting=True), _qwen_vae(), encoder, _tokenizer(words=True), net,
        text_encoder_select_layers=(1, 2),
    )  # fmt: skip


def prx():
    net = d.PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[4, 4]
    )
    return d.PRXPipeline(net, _flow(shift=3.0), _gemma(), _tokenizer(), _flow_vae(), default_sample_size=16)


def sd_img2img():
    return _with(d.StableDiffusionImg2ImgPipeline, tiny._sd(), requires_safety_checker=False)


def sdxl_img2img():
    return _with(d.StableDiffusionXLImg2ImgPipeline, tiny._sdxl(), add_watermarker=False)


def flux_img2img():
    return _with(d.FluxImg2ImgPipeline, tiny._flux())


def sd_pix2pix():
    return _with(d.StableDiffusionInstructPix2PixPipeline, tiny._sd(in_channels=8), requires_safety_checker=False)


def sdxl_pix2pix():
    return _with(d.StableDiffusionXLInstructPix2PixPipeline, tiny._sdxl(in_channels=8), add_watermarker=False)


def sd_inpaint(channels: int = 4):
    return _with(d.StableDiffusionInpaintPipeline, tiny._sd(in_channels=channels), requires_safety_checker=False)


def sd_inpaint9():
    """Trained for it: the UNet gets mask and masked image, too."""
    return sd_inpaint(9)


def qwen_edit():
    """In memory: its processor, which reads the image into the prompt, is one of words alone here."""
    from transformers import BatchEncoding, Qwen2VLProcessor

    class Words(Qwen2VLProcessor):
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, text, images, padding, return_tensors):
            return BatchEncoding(self.tokenizer(text, padding=padding, return_tensors=return_tensors))

    pipe = qwen_image()
    made = _with(d.QwenImageEditPipeline, pipe, processor=Words(pipe.tokenizer))
    for network in (made.text_encoder, made.transformer, made.vae):
        network.eval().requires_grad_(False)
    return made


def sd_control_net(**changes: Any):
    """A ControlNet of `hub_tiny`'s Stable Diffusion; its last layers, which begin at zero, are drawn."""
    own = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8,
           "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
           "conditioning_embedding_out_channels": (8, 16)}  # fmt: skip
    return _drawn(d.ControlNetModel(**own | changes))


def sdxl_control_net():
    return sd_control_net(
        cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )  # fmt: skip


def sdxl_union_net():
    """For six kinds of conditions."""
    own = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16,
           "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
           "conditioning_embedding_out_channels": (8, 16), "num_trans_channel": 8, "num_trans_head": 2,
           "num_proj_channel": 8, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
           "projection_class_embeddings_input_dim": 6 * 4 + 8}  # fmt: skip
    net = d.ControlNetUnionModel(**own)
    torch.nn.init.normal_(net.task_embedding)
    return _drawn(net)


def flux_union_net():
    return flux_control_net(num_mode=4)


def sd3_control_net():
    return _drawn(d.SD3ControlNetModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=8, pooled_projection_dim=16, pos_embed_max_size=8,
        out_channels=4,
    ))  # fmt: skip


def flux_control_net(**changes: Any):
    return _drawn(d.FluxControlNetModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=True, **changes,
    ))  # fmt: skip


def _drawn(net: torch.nn.Module) -> torch.nn.Module:
    """Layers that begin at zero drawn anew, so that the network does something."""
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.2)
    return net.eval().requires_grad_(False)


def flux_control():
    """Trained with the latents of a condition beside its own."""
    return _with(d.FluxControlPipeline, tiny._flux(in_channels=32, out_channels=16))


def animate_diff():
    adapter = d.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )  # fmt: skip
    pipe = tiny._sd()
    scheduler = d.DDIMScheduler(**tiny._BETAS)
    return d.AnimateDiffPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, _drawn(adapter), scheduler)


def ltx():
    net = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=8,
    )  # fmt: skip
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    return d.LTXPipeline(_flow(), vae, tiny._t5_encoder(), tiny._t5_tokenizer(), net)


def wan(networks: int = 1, channels: int = 4):
    def net():
        return d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=4,
            text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip

    vae = d.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    second = {"transformer_2": net(), "boundary_ratio": 0.875} if networks > 1 else {}
    return d.WanPipeline(tiny._t5_tokenizer(), tiny._t5_encoder(), vae, _flow(shift=3.0), net(), **second)


def wan22():
    """Two networks, between which the pipeline changes by itself."""
    return wan(2)


def ltx_i2v():
    return _with(d.LTXImageToVideoPipeline, ltx())


def wan_i2v():
    """Its network sees noise, the image's latents and a mask of the frames that are given."""
    return _with(d.WanImageToVideoPipeline, wan(channels=4 + 4 + 4))


def cogvideox_i2v():
    return _with(d.CogVideoXImageToVideoPipeline, cogvideox(8))


def cogvideox(channels: int = 4):
    net = d.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4, time_embed_dim=2,
        text_embed_dim=8, num_layers=2, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    return d.CogVideoXPipeline(tiny._t5_tokenizer(), tiny._t5_encoder(), vae, net, d.CogVideoXDDIMScheduler())


def hunyuan_video():
    net = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=WIDTH,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4, layers_per_block=1, norm_num_groups=4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4,
    )  # fmt: skip
    return d.HunyuanVideoPipeline(
        _text("LlamaModel"),
        _tokenizer(),
        net,
        vae,
        _flow(shift=7.0),
        tiny._clip_encoder(positions=77),
        tiny._clip_tokenizer(),
    )
