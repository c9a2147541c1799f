"""A checkpoint with the architecture of SD 1.5 and seeded random weights, in f16 (2.1 GB), through the diffusers library itself.

    python tests/gpu/checkpoint.py FOLDER

The tokenizer is that of assets/tiny-sd: the words are others than CLIP's, and the time is the same.
"""
import os
import pathlib
import shutil
import sys

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(out):
    torch.manual_seed(1234)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "tiny-sd" / "tokenizer")
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
                          max_position_embeddings=77, hidden_act="quick_gelu", **ids)
    # The numbers are drawn where the card is, if there is one, which takes a second.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        parts = dict(
            text_encoder=CLIPTextModel(text),
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)),
            vae=AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
                              down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
        )
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(**parts, scheduler=scheduler, tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)
    # Renamed when it is whole.
    beside = out.with_name(f"{out.name}.{os.getpid()}")
    pipeline.to(torch.float16).save_pretrained(beside)
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
