"""A DDPM of cats (Ho et al. 2020): 32x32 pixels, from nothing to assets/demo/ddpm.

    python train_ddpm.py --work /tmp/demo-ddpm    # some 20 minutes of one core; run it again to go on after a stop
"""
import argparse, pathlib, random, shutil

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import world
from common import fit, halve, log, size_of

HERE = pathlib.Path(__file__).resolve().parent
SIZE, BATCH, PICTURES = 32, 32, 20000


def make_unet():
    torch.manual_seed(0)
    return UNet2DModel(sample_size=SIZE, block_out_channels=(16, 32, 48), layers_per_block=1, norm_num_groups=4, attention_head_dim=16,
                       down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))


def cats():
    """(n, 3, 32, 32) in -1..1: one cat each, of any colour, anywhere."""
    rng = random.Random(0)
    pictures = []
    for i in range(PICTURES):
        colour = rng.choice(list(world.COLOURS))
        cat = world.Thing("cat", colour, True, 32 + rng.uniform(-6, 6), 34 + rng.uniform(-4, 4), rng.uniform(19, 23))
        pictures.append(world.draw(world.Scene((cat,), None, rng.choice([None, *world.PLACES]), rng.randrange(1 << 30)), SIZE))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the state, the log and pictures on the way")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "ddpm")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    unet, scheduler = make_unet().to(memory_format=torch.channels_last), DDPMScheduler()
    pictures = cats()
    log(args.work, f"ddpm: {sum(p.numel() for p in unet.parameters())} parameters, {len(pictures)} pictures")

    def loss_of(unet, g):
        x0 = pictures[torch.randint(len(pictures), (BATCH,), generator=g)].float() / 127.5 - 1
        x0 = x0.contiguous(memory_format=torch.channels_last)
        t = torch.randint(1000, (BATCH,), generator=g)
        noise = torch.randn(x0.shape, generator=g)
        eps = unet(scheduler.add_noise(x0, noise, t), t).sample
        return F.mse_loss(eps, noise)

    def look(unet, step):
        # Few steps of DDIM: enough to see how far it is.
        ddim = DDIMScheduler.from_config(scheduler.config)
        ddim.set_timesteps(30)
        x = torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in ddim.timesteps:
                x = ddim.step(unet(x, t).sample, t, x).prev_sample
        rgb = ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        world.sheet(list(rgb), 8).save(args.work / f"ddpm-{step:06}.png")

    unet = fit("ddpm", unet, loss_of, args.steps, 1e-3, args.work, look=look)
    shutil.rmtree(args.out, ignore_errors=True)
    DDPMPipeline(unet.to(memory_format=torch.contiguous_format), scheduler).save_pretrained(args.out)
    halve(args.out)
    log(args.work, f"{size_of(args.out)} bytes in {args.out.name}")


if __name__ == "__main__":
    main()
