"""Stable Diffusion in miniature (Rombach et al. 2022): 64x64 pixels, from nothing to assets/demo/txt2img.

    python train_txt2img.py --work /tmp/demo-txt2img    # run it again to go on after a stop

In this order: the text tower, which learns to tell from a caption what is in its scene (the place of CLIP's own training); the
autoencoder; the UNet, on latents that are computed once, first plainly, then under guidance; the decoder alone, on latents that the
UNet made.
`--go-on-from` takes a finished checkpoint's text tower as it is; every other part goes on learning for as many steps as it is given.
"""
import argparse, pathlib, random, shutil

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from transformers import CLIPTextModel

import words, world
from common import fit, halve, log, once, size_of, start_workers, workers

HERE = pathlib.Path(__file__).resolve().parent
PICTURES, LATENT_CHANNELS = 50000, 12
BETAS = dict(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction")


def scenes(count=PICTURES, seed=1):
    rng = random.Random(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def held_out(count, seed=9):
    """Scenes whose meaning no training caption has."""
    rng = random.Random(seed)
    return [world.sample_scene(rng, held_out=True) for _ in range(count)]


def pictures(args):
    """(n, 64, 64, 3) bytes, drawn once."""
    draw = lambda path: np.save(path, np.stack([world.draw(scene) for scene in scenes()]))
    return np.load(once(args.work / "pictures.npy", draw), mmap_mode="r")


def as_pixels(rgb):
    """uint8 (b, h, w, 3) -> f32 (b, 3, h, w) in -1..1"""
    return torch.from_numpy(rgb.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def as_rgb(pixels):
    """f32 (b, 3, h, w) in -1..1 -> a list of uint8 (h, w, 3)"""
    return list(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())


# The autoencoder: factor 8, so that the UNet works on 8x8 latents.

def difference(y, x):
    """How far a picture is from the right one: by pixel, and by the mean colour of 4x4 pixels, which the eye sees first."""
    return F.l1_loss(y, x) + F.mse_loss(y, x) + F.l1_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))


def make_vae():
    torch.manual_seed(1)
    widths = (16, 32, 32, 64)
    return AutoencoderKL(block_out_channels=widths, layers_per_block=1, norm_num_groups=4, latent_channels=LATENT_CHANNELS, sample_size=world.SIZE,
                         down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths))


def train_vae(args, vae):
    drawn, batch = pictures(args), 16
    test = as_pixels(np.stack([world.draw(scene) for scene in scenes(32, seed=2)]))

    def loss_of(vae, g):
        x = as_pixels(drawn[torch.randint(len(drawn), (batch,), generator=g).numpy()])
        latent = vae.encode(x).latent_dist
        z = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=g)
        y = vae.decode(z).sample
        return difference(y, x) + 3e-4 * latent.kl().mean() / latent.mean[0].numel()

    def look(vae, step):
        with torch.no_grad():
            latent = vae.encode(test).latent_dist
            y = vae.decode(latent.mean).sample.clamp(-1, 1)
        log(args.work, f"vae step {step}: {-10 * (F.mse_loss(y, test) / 4).log10():.2f} dB, deviation of the means {latent.mean.std():.3f}, of a latent {latent.std.mean():.3f}")
        world.sheet(as_rgb(test) + as_rgb(y), 16).save(args.work / f"vae-{step:06}.png")

    vae = fit("vae", vae.requires_grad_(True).train(), loss_of, args.vae_steps, 1.5e-3, args.work, cooldown=0.7, look=look, look_every=500)
    return vae.requires_grad_(False)


def center(vae, drawn):
    """Makes the latents' mean zero, in the layers that hand them over, and their deviation the scaling factor's inverse."""
    with torch.no_grad():
        z = torch.cat([vae.encode(as_pixels(drawn[i : i + 250])).latent_dist.mean for i in range(0, min(4000, len(drawn)), 250)])
        mean = z.mean((0, 2, 3))
        scale = (z - mean[:, None, None]).std()
        # decode(z) applies post_quant_conv first: W (z + mean) + b = W z + (W mean + b)
        vae.quant_conv.bias[: len(mean)] -= mean
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.register_to_config(scaling_factor=round(1 / scale.item(), 4))
    return vae


def latents(args, vae):
    """(n, c, 8, 8): what the UNet learns to draw."""
    drawn = pictures(args)

    def make(path):
        with torch.no_grad():
            z = [vae.encode(as_pixels(drawn[i : i + 200])).latent_dist.mean for i in range(0, len(drawn), 200)]
        torch.save(torch.cat(z).contiguous() * vae.config.scaling_factor, path)
        log(args.work, f"scaling factor {vae.config.scaling_factor}")

    return torch.load(once(args.work / "latents.pt", make))


# The UNet: v-prediction (Salimans & Ho 2022), the text's tower at rest.

def make_unet():
    torch.manual_seed(3)
    return UNet2DConditionModel(sample_size=world.SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96), layers_per_block=1,
                                norm_num_groups=16, attention_head_dim=4, cross_attention_dim=words.WIDTH, mid_block_type=None,
                                down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)


def make_scheduler():
    # The spacing is PNDM's default; named, it stays when the class is swapped.
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    scheduler.register_to_config(clip_sample=False)  # for those who swap it
    return scheduler


def make_pipe(vae, reader, unet, tokenizer):
    return StableDiffusionPipeline(vae=vae, text_encoder=reader.tower, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(), safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False)


class Lesson:
    """What the UNet learns: latents with noise, and the states of their captions."""

    def __init__(self, args, vae, reader, tokenizer, batch=64):
        self.x, self.scenes, self.reader, self.tokenizer, self.batch = latents(args, vae), scenes(), reader, tokenizer, batch
        self.schedule = DDPMScheduler(**BETAS)
        self.silent = self.read([""])

    def read(self, captions):
        with torch.no_grad():
            return self.reader.tower(words.encode(self.tokenizer, captions)).last_hidden_state

    def draw(self, count, g):
        """x_0, its noise, t, and the text's states."""
        pick = torch.randint(len(self.x), (count,), generator=g)
        rng = random.Random(pick.sum().item())
        text = self.read([words.spoken(self.scenes[i], rng) for i in pick])
        x0, t = self.x[pick], torch.randint(1000, (count,), generator=g)
        return x0, torch.randn(x0.shape, generator=g), t, text

    def plain(self, unet, g):
        """The squared error of v, one caption in ten empty."""
        x0, noise, t, text = self.draw(self.batch, g)
        text = torch.where((torch.rand(self.batch, generator=g) < 0.1)[:, None, None], self.silent, text)
        noisy = self.schedule.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(unet(noisy, t, text).sample, self.schedule.get_velocity(x0, noise, t))

    def guided(self, unet, g):
        """The squared error of v as guidance makes it: v(x_t) + 3.75 (v(x_t, caption) - v(x_t)), and that of v(x_t), with an empty caption.

        A caption of this world tells nearly everything, and classifier-free guidance (Ho & Salimans 2022) of 7.5 would go far past it, into
        patches of other colours. So a caption moves the guess by 1 / 3.75 of the way only, and with 7.5 by twice the way, which serves best.
        """
        half = self.batch // 2
        x0, noise, t, text = self.draw(half, g)
        v, noisy = self.schedule.get_velocity(x0, noise, t), self.schedule.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        given, free = unet(torch.cat([noisy, noisy]), torch.cat([t, t]), torch.cat([text, self.silent.expand(half, -1, -1)])).sample.chunk(2)
        return F.mse_loss(torch.lerp(free, given, 3.75), v) + F.mse_loss(free, v)


def train_unet(args, lesson, vae):
    watched = [world.FAVOURITE, *(world.caption(scene, random.Random(0)) for scene in scenes(15, seed=2))]

    def look(unet, step, name="unet"):
        pipe = make_pipe(vae, lesson.reader, unet, lesson.tokenizer)
        pipe.set_progress_bar_config(disable=True)
        drawn = [pipe(watched, num_inference_steps=20, guidance_scale=g, generator=torch.Generator().manual_seed(0), output_type="np").images for g in (1.0, 3.0, 7.5)]
        world.sheet([(p * 255).round().astype(np.uint8) for p in np.concatenate(drawn)], 16).save(args.work / f"{name}-{step:06}.png")

    unet = UNet2DConditionModel.from_pretrained(args.go_on_from, subfolder="unet", torch_dtype=torch.float32).train() if args.go_on_from else make_unet()
    unet.to(memory_format=torch.channels_last)
    log(args.work, f"unet: {sum(p.numel() for p in unet.parameters())} parameters, latents deviate by {lesson.x.std():.3f}; watched: {watched}")
    unet = fit("unet", unet, lesson.plain, args.unet_steps, args.unet_rate, args.work, average=0.999, cooldown=0, look=look, look_every=500)
    unet.requires_grad_(True).train()
    return fit("guided", unet, lesson.guided, args.guided_steps, args.guided_rate, args.work, average=0.998, cooldown=0.6, look=lambda unet, step: look(unet, step, "guided"), look_every=500)


# The decoder once more, on latents that the UNet made: it learns what they stand for, their faults too.

def made(args, lesson, unet, count=8000, batch=100, guidance=7.5, steps=25, start=14):
    """(n, c, 8, 8) for this worker's n pictures, every so manieth from the first: noise is laid over a picture's latent, and UniPC
    takes the rest of the way from there. It still shows where each thing is."""
    rank, of = workers()
    path, mine = args.work / f"made-{rank}.pt", torch.arange(rank, count, of)
    if path.exists():
        return mine, torch.load(path)
    g, rng, out = torch.Generator().manual_seed(rank), random.Random(rank), []
    for pick in mine.split(batch):
        scheduler = UniPCMultistepScheduler.from_config(make_scheduler().config)
        scheduler.set_timesteps(steps), scheduler.set_begin_index(start)
        x0, text = lesson.x[pick], lesson.read([words.spoken(lesson.scenes[i], rng) for i in pick])
        text = torch.cat([lesson.silent.expand(text.shape), text])
        x = scheduler.add_noise(x0, torch.randn(x0.shape, generator=g), scheduler.timesteps[start].expand(len(pick)))
        for t in scheduler.timesteps[start:]:
            with torch.no_grad():
                free, given = unet(torch.cat([x, x]), t, text).sample.chunk(2)
            x = scheduler.step(torch.lerp(free, given, guidance), t, x).prev_sample
        out.append(x)
    out = torch.cat(out)
    torch.save(out, path)
    return mine, out


def train_decoder(args, lesson, vae, unet):
    drawn, batch = pictures(args), 16
    which, guesses = made(args, lesson, unet)
    vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True), vae.decoder.train()
    pages = as_pixels(drawn[which[:32].numpy()])

    def loss_of(vae, g):
        """Half of a batch is latents as the encoder makes them, with a little noise."""
        far, near = torch.randint(len(which), (batch // 2,), generator=g), torch.randint(len(drawn), (batch // 2,), generator=g)
        near_z = lesson.x[near] + 0.1 * torch.randn((batch // 2, *lesson.x.shape[1:]), generator=g)
        z = torch.cat([guesses[far], near_z]) / vae.config.scaling_factor
        return difference(vae.decode(z.contiguous(memory_format=torch.channels_last)).sample, as_pixels(drawn[torch.cat([which[far], near]).numpy()]))

    def look(vae, step):
        with torch.no_grad():
            y = vae.decode(guesses[:32] / vae.config.scaling_factor).sample.clamp(-1, 1)
        world.sheet(as_rgb(pages) + as_rgb(y), 16).save(args.work / f"decoder-{step:06}.png")

    vae = fit("decoder", vae, loss_of, args.decoder_steps, 7e-4, args.work, cooldown=0.8, look=look, look_every=500)
    return vae.requires_grad_(False)


def started(args, tokenizer):
    """The text tower and the autoencoder of the checkpoint to go on from."""
    reader = words.Reader(tokenizer)
    reader.tower = CLIPTextModel.from_pretrained(args.go_on_from, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(args.go_on_from, subfolder="vae", torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    return reader.requires_grad_(False).eval(), vae.requires_grad_(False).eval()


def train_text(args, tokenizer):
    reader = fit("text", words.Reader(tokenizer), words.reading_loss(tokenizer, scenes()), args.text_steps, 2e-3, args.work)
    log(args.work, f"text: every slot right in {words.right(reader, tokenizer, held_out(1000)):.1%} of captions never seen")
    return reader.requires_grad_(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the state, the log and pictures on the way")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "txt2img")
    parser.add_argument("--vae-steps", type=int, default=8000)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--text-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=9000)
    parser.add_argument("--guided-steps", type=int, default=7000)
    parser.add_argument("--unet-rate", type=float, default=1.5e-3)
    parser.add_argument("--guided-rate", type=float, default=1e-3)
    parser.add_argument("--go-on-from", type=pathlib.Path, help="a finished checkpoint instead of nothing; the parts that are to stay as they are take 0 steps")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    start_workers()
    tokenizer = words.make_tokenizer(args.work / f"tokenizer-{workers()[0]}")
    if args.go_on_from:
        reader, vae = started(args, tokenizer)
    else:
        reader, vae = train_text(args, tokenizer), make_vae().to(memory_format=torch.channels_last)
    if args.vae_steps:
        vae = center(train_vae(args, vae), pictures(args))
    lesson = Lesson(args, vae, reader, tokenizer)
    unet = train_unet(args, lesson, vae)
    if args.decoder_steps:
        vae = train_decoder(args, lesson, vae, unet)
    if workers()[0]:
        return
    shutil.rmtree(args.out, ignore_errors=True)
    make_pipe(vae, reader, unet, tokenizer).to(memory_format=torch.contiguous_format).save_pretrained(args.out)
    halve(args.out)
    log(args.work, f"{size_of(args.out)} bytes in {args.out.name}")


if __name__ == "__main__":
    main()
