"""Stable Diffusion in miniature (Rombach et al. 2022): 64x64 pixels, from nothing to assets/demo/txt2img.

    python train_txt2img.py --work /tmp/demo-txt2img    # run it again to go on after a stop

In this order: the text tower, which learns to tell from a caption what is in its scene (the place of CLIP's own training); the
autoencoder; the UNet, on latents that are computed once, first plainly, then under guidance; the decoder alone, on latents that the
UNet made.
`--go-on-from` takes a finished checkpoint's text tower as it is; every other part goes on learning for as many steps as it is given.
With a CUDA card all but the text tower learns there, each step as one graph. It draws other numbers than a CPU.
"""
import argparse, functools, multiprocessing, os, pathlib, random, shutil

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from transformers import CLIPTextModel

import words, world
from common import fit, halve, log, once, size_of, start_workers, workers

HERE = pathlib.Path(__file__).resolve().parent
LATENT_CHANNELS = 12
BETAS = dict(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction")


@functools.cache
def scenes(count, seed=1):
    rng = random.Random(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def held_out(count, seed=9):
    """Scenes whose meaning no training caption has."""
    rng = random.Random(seed)
    return [world.sample_scene(rng, held_out=True) for _ in range(count)]


def on_all_cores(work, items, chunk):
    """[work(item), ...]; to be called before anything is on a card."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough
    with multiprocessing.get_context("fork").Pool() as pool:
        return pool.map(work, items, chunk)


def pictures(args):
    """(n, 64, 64, 3) bytes, drawn once."""
    draw = lambda path: np.save(path, np.stack(on_all_cores(world.draw, scenes(args.pictures), 250)))
    return torch.from_numpy(np.load(once(args.work / f"pictures-{args.pictures}.npy", draw), mmap_mode="c"))


def captions(args, tokenizer):
    """Token ids, (n, 8, 24) in 16 bits: eight captions of each scene, spoken once."""
    write = functools.partial(words.eight, tokenizer)
    make = lambda path: np.save(path, np.stack(on_all_cores(write, list(enumerate(scenes(args.pictures))), 250)))
    return torch.from_numpy(np.load(once(args.work / f"captions-{args.pictures}.npy", make)))


def as_pixels(rgb):
    """uint8 (b, h, w, 3) -> f32 (b, 3, h, w) in -1..1"""
    return rgb.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def as_rgb(pixels):
    """f32 (b, 3, h, w) in -1..1 -> a list of uint8 (h, w, 3)"""
    return list(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


# The autoencoder: factor 8, so that the UNet works on 8x8 latents.

def difference(y, x):
    """How far a picture is from the right one: by pixel, and by the mean colour of 4x4 pixels, which the eye sees first."""
    return F.l1_loss(y, x) + F.mse_loss(y, x) + F.l1_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))


def make_vae():
    torch.manual_seed(1)
    widths = (16, 32, 32, 64)
    return AutoencoderKL(block_out_channels=widths, layers_per_block=1, norm_num_groups=4, latent_channels=LATENT_CHANNELS, sample_size=world.SIZE,
                         down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths))


def train_vae(args, vae, drawn):
    test = as_pixels(torch.from_numpy(np.stack([world.draw(scene) for scene in scenes(32, seed=2)])).to(args.device))

    def loss_of(vae, g):
        x = as_pixels(drawn[torch.randint(len(drawn), (args.picture_batch,), generator=g, device=g.device)])
        latent = vae.encode(x).latent_dist
        z = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=g, device=g.device)
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


def latents(args, vae, drawn):
    """(n, c, 8, 8): what the UNet learns to draw."""
    batch = 1000 if args.device.type == "cuda" else 200

    def make(path):
        torch.set_num_threads(args.threads * workers()[1])  # the others wait
        with torch.no_grad():
            z = [vae.encode(as_pixels(drawn[i : i + batch])).latent_dist.mean for i in range(0, len(drawn), batch)]
        torch.set_num_threads(args.threads)
        torch.save(torch.cat(z).contiguous() * vae.config.scaling_factor, path)
        log(args.work, f"scaling factor {vae.config.scaling_factor}")

    return torch.load(once(args.work / f"latents-{args.pictures}.pt", make), map_location=args.device)


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

    def __init__(self, args, vae, reader, tokenizer, drawn, ids):
        self.x, self.ids, self.reader, self.tokenizer, self.batch = latents(args, vae, drawn), ids, reader, tokenizer, args.batch
        kept = DDPMScheduler(**BETAS).alphas_cumprod.to(args.device)[:, None, None, None]
        self.signal, self.noise = kept**0.5, (1 - kept) ** 0.5
        self.silent = self.read(words.encode(tokenizer, [""]).to(args.device))

    def read(self, ids):
        with torch.no_grad():
            return self.reader.tower(ids).last_hidden_state

    def told(self, pick, g):
        """The states of one of each scene's captions."""
        return self.read(self.ids[pick, torch.randint(self.ids.shape[1], pick.shape, generator=g, device=g.device)].long())

    def draw(self, count, g):
        """Which scenes, t, v, and x_t"""
        pick = torch.randint(len(self.x), (count,), generator=g, device=g.device)
        x0, t = self.x[pick], torch.randint(1000, (count,), generator=g, device=g.device)
        noise, a, b = torch.randn(x0.shape, generator=g, device=g.device), self.signal[t], self.noise[t]
        return pick, t, a * noise - b * x0, (a * x0 + b * noise).contiguous(memory_format=torch.channels_last)

    def plain(self, unet, g):
        """The squared error of v, one caption in ten empty."""
        pick, t, v, noisy = self.draw(self.batch, g)
        empty = torch.rand(self.batch, generator=g, device=g.device) < 0.1
        text = torch.where(empty[:, None, None], self.silent, self.told(pick, g))
        return F.mse_loss(unet(noisy, t, text).sample, v)

    def guided(self, unet, g):
        """The squared error of v as guidance makes it: v(x_t) + 3.75 (v(x_t, caption) - v(x_t)), and that of v(x_t), with an empty caption.

        A caption of this world tells nearly everything, and classifier-free guidance (Ho & Salimans 2022) of 7.5 would go far past it, into
        patches of other colours. So a caption moves the guess by 1 / 3.75 of the way only, and with 7.5 by twice the way, which serves best.
        """
        half = self.batch // 2
        pick, t, v, noisy = self.draw(half, g)
        text = self.told(pick, g)
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
    unet.to(args.device, memory_format=torch.channels_last)
    log(args.work, f"unet: {sum(p.numel() for p in unet.parameters())} parameters, latents deviate by {lesson.x.std():.3f}; watched: {watched}")
    unet = fit("unet", unet, lesson.plain, args.unet_steps, args.unet_rate, args.work, average=0.999, cooldown=0, look=look, look_every=3000)
    unet.requires_grad_(True).train()
    return fit("guided", unet, lesson.guided, args.guided_steps, args.guided_rate, args.work, average=0.998, cooldown=0.6, look=lambda unet, step: look(unet, step, "guided"), look_every=3500)


# The decoder once more, on latents that the UNet made: it learns what they stand for, their faults too.

def made(args, lesson, unet, count=8000, guidance=7.5, steps=25, start=14):
    """(n, c, 8, 8) for this worker's n pictures, every so manieth from the first: noise is laid over a picture's latent, and UniPC
    takes the rest of the way from there. It still shows where each thing is."""
    rank, of = workers()
    path, mine = args.work / f"made-{rank}.pt", torch.arange(rank, min(count, len(lesson.x)), of, device=args.device)
    if path.exists():
        return mine, torch.load(path, map_location=args.device)
    g, out = torch.Generator(args.device).manual_seed(rank), []
    for pick in mine.split(1000 if args.device.type == "cuda" else 100):
        scheduler = UniPCMultistepScheduler.from_config(make_scheduler().config)
        scheduler.set_timesteps(steps, device=args.device), scheduler.set_begin_index(start)
        x0 = lesson.x[pick]
        x = scheduler.add_noise(x0, torch.randn(x0.shape, generator=g, device=g.device), scheduler.timesteps[start].expand(len(pick)))
        text = lesson.told(pick, g)
        text = torch.cat([lesson.silent.expand(text.shape), text])
        for t in scheduler.timesteps[start:]:
            with torch.no_grad():
                free, given = unet(torch.cat([x, x]), t, text).sample.chunk(2)
            x = scheduler.step(torch.lerp(free, given, guidance), t, x).prev_sample
        out.append(x)
    out = torch.cat(out)
    torch.save(out, path)
    return mine, out


def train_decoder(args, lesson, vae, unet, drawn):
    which, guesses, half = *made(args, lesson, unet), args.picture_batch // 2
    vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True), vae.decoder.train()
    pages = as_pixels(drawn[which[:32]])

    def loss_of(vae, g):
        """Half of a batch is latents as the encoder makes them, with a little noise."""
        far, near = [torch.randint(len(of), (half,), generator=g, device=g.device) for of in (which, drawn)]
        near_z = lesson.x[near] + 0.1 * torch.randn((half, *lesson.x.shape[1:]), generator=g, device=g.device)
        z = torch.cat([guesses[far], near_z]) / vae.config.scaling_factor
        return difference(vae.decode(z.contiguous(memory_format=torch.channels_last)).sample, as_pixels(drawn[torch.cat([which[far], near])]))

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
    reader = fit("text", words.Reader(tokenizer), words.reading_loss(tokenizer, scenes(args.pictures)), args.text_steps, 2e-3, args.work)
    log(args.work, f"text: every slot right in {words.right(reader, tokenizer, held_out(1000)):.1%} of captions never seen")
    return reader.requires_grad_(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the state, the log and pictures on the way")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "txt2img")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=300000)
    parser.add_argument("--vae-steps", type=int, default=8000)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--picture-batch", type=int, default=16, help="pictures in a step of the autoencoder or of its decoder")
    parser.add_argument("--text-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=5000)
    parser.add_argument("--guided-steps", type=int, default=9500)
    parser.add_argument("--batch", type=int, default=64, help="latents in a step of the UNet; under guidance half of it, each with and without its caption")
    parser.add_argument("--unet-rate", type=float, default=1.5e-3)
    parser.add_argument("--guided-rate", type=float, default=1e-3)
    parser.add_argument("--go-on-from", type=pathlib.Path, help="a finished checkpoint instead of nothing; the parts that are to stay as they are take 0 steps")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    args.work.mkdir(parents=True, exist_ok=True)
    start_workers()
    tokenizer = words.make_tokenizer(args.work / f"tokenizer-{workers()[0]}")
    ids, drawn = [t.to(args.device) for t in (captions(args, tokenizer), pictures(args))]
    if args.go_on_from:
        reader, vae = started(args, tokenizer)
    else:
        reader, vae = train_text(args, tokenizer), make_vae().to(memory_format=torch.channels_last)
    reader, vae = reader.to(args.device), vae.to(args.device)
    if args.vae_steps:
        vae = center(train_vae(args, vae, drawn), drawn)
    lesson = Lesson(args, vae, reader, tokenizer, drawn, ids)
    unet = train_unet(args, lesson, vae)
    if args.decoder_steps:
        vae = train_decoder(args, lesson, vae, unet, drawn)
    if workers()[0]:
        return
    shutil.rmtree(args.out, ignore_errors=True)
    make_pipe(vae, reader, unet, tokenizer).to("cpu").save_pretrained(args.out)
    halve(args.out)
    log(args.work, f"{size_of(args.out)} bytes in {args.out.name}")


if __name__ == "__main__":
    main()
