"""The parts `speed` and `compile`: whole pictures against diffusers, from the prompt to the pixels, without loading.

Both programs stay loaded and draw in turn, so that what the card does in one minute and not in another reaches both. Both draw from the same noise,
and their pictures are compared: the time of a wrong picture is no time.
"""
import os
import pathlib
import statistics
import sys
import time

from card import CPU, DEVICE, DTYPE, GUIDANCE, SIDE, STEPS, Program, checkpoint, end, not_run, row

try:
    import numpy
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from torch._inductor.async_compile import AsyncCompile
except ImportError as missing:
    not_run(f"{missing}")

if not CPU and not torch.cuda.is_available():
    not_run("torch sees no card")

TORCH_DTYPE = {"f16": torch.float16, "f32": torch.float32}[DTYPE]
# Of 255, in the mean: 16 bits differ in the last places, and other pictures by tens.
PICTURE = 2.0
# A call of the UNet for one picture with guidance at 512x512, counted on the definition.
FLOP = None if CPU else 1607e9
PHASES = ("text", "denoise", "decode")
MODE, NETWORKS = os.environ.get("MODE", "max-autotune"), os.environ.get("NETWORKS", "unet,vae").split(",")
PROMPTS = ["a cat", "two dogs on a hill", "the sun and the moon", "a house by the sea", "red horses", "a bird over the town", "an old tree", "the king of the north"]


def bar(compiled, images):
    """Ours over theirs, at most."""
    return 0.5 if images == 1 and not compiled else 1.0


def settle():
    if not CPU:
        torch.cuda.synchronize()


class Peer:
    def __init__(self, model, compiled):
        self.pipe = StableDiffusionPipeline.from_pretrained(model, dtype=TORCH_DTYPE, safety_checker=None).to(DEVICE)
        self.pipe.set_progress_bar_config(disable=True)
        if compiled:
            # torch's own, which its pool of compilers takes: with Triton's, this process found none of what they had made and made all again.
            ptxas = pathlib.Path(torch.__file__).parent / "bin" / "ptxas"
            if ptxas.exists():
                os.environ.setdefault("TRITON_PTXAS_PATH", str(ptxas))
            # The search for kernels compiles candidates in processes of its own only once these stand, and else beside what it times.
            AsyncCompile.wait_pool_ready()
            # Every size of batch is compiled by itself.
            how = dict(backend="eager") if CPU else dict(mode=MODE)
            for network in (self.pipe.unet, self.pipe.vae):
                network.to(memory_format=torch.channels_last)
            if "unet" in NETWORKS:
                self.pipe.unet = torch.compile(self.pipe.unet, fullgraph=True, dynamic=False, **how)
            if "vae" in NETWORKS:
                self.pipe.vae.decode = torch.compile(self.pipe.vae.decode, fullgraph=True, dynamic=False, **how)
        self.marks = {}
        # What is called first in a phase; the text is read when the timesteps are set.
        self.pipe.scheduler.set_timesteps = self.noting("denoise", self.pipe.scheduler.set_timesteps)
        self.pipe.vae.decode = self.noting("decode", self.pipe.vae.decode)

    def noting(self, phase, call):
        def noted(*args, **kwargs):
            settle()
            self.marks[phase] = time.perf_counter()
            return call(*args, **kwargs)

        return noted

    def draw(self, prompt, seed, images):
        """Pictures, and the seconds of each phase."""
        one = lambda k: torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(seed + k))
        latents = torch.cat([one(k) for k in range(images)]).to(DEVICE, TORCH_DTYPE)
        settle()
        start = time.perf_counter()
        pictures = self.pipe(prompt, num_images_per_prompt=images, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIDE, width=SIDE, latents=latents).images
        settle()
        times = [start, self.marks["denoise"], self.marks["decode"], time.perf_counter()]
        return pictures, dict(zip(PHASES, (after - before for before, after in zip(times, times[1:]))))


def matrix_rate():
    """Operations a second of a large matrix product."""
    n = 1024 if CPU else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=TORCH_DTYPE) for _ in range(2))
    times = []
    for _ in range(13):
        settle()
        start = time.perf_counter()
        a @ b
        settle()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times[3:])


def apart(ours, theirs):
    """The mean difference of two pictures, of 255."""
    a, b = (numpy.asarray(picture.convert("RGB"), numpy.int16) for picture in (ours, theirs))
    return numpy.abs(a - b).mean()


def told(times):
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def compare(peer, model, images, compiled, name, rate):
    """The rows of one size of batch; what is wrong."""
    rounds = 7 if images == 1 else 5
    ours, theirs, whole, pictures = [], [], [], []
    with Program(model, images) as program:
        # The first pictures load, choose kernels and compile.
        start = time.perf_counter()
        peer.draw("warm", 1, images)
        first = time.perf_counter() - start
        for turn in range(-1, rounds):
            prompt, seed = PROMPTS[turn % len(PROMPTS)], 1000 * (turn + 2)
            objects, wall = program.draw(prompt, seed)
            made, seconds = peer.draw(prompt, seed, images)
            if turn < 0:
                continue
            ours.append({phase: sum(one["seconds"][phase] for one in objects) for phase in PHASES})
            theirs.append(seconds)
            whole.append(wall)
            print(f"turn {turn + 1} of {rounds}: {sum(ours[-1].values()):.3f} and {sum(seconds.values()):.3f} s")
            pictures += [apart(Image.open(one["path"]), picture) for one, picture in zip(objects, made)]
    calls = objects[0]["calls"]
    sums = [[sum(one.values()) for one in side] for side in (ours, theirs)]
    medians = [statistics.median(times) for times in sums]
    ratio = medians[0] / medians[1]
    what = f"batch of {images}"
    row(f"{what}: seconds of diffuse and of {name}", f"{told(sums[0])} and {told(sums[1])}")
    most = bar(compiled, images)
    row(f"{what}: ratio", f"{ratio:.3f}", f"at most {most}")
    row(f"{what}: calls a second", " and ".join(f"{calls / median:.2f}" for median in medians))
    for phase in PHASES:
        row(f"{what}: seconds of {phase}", " and ".join(told([one[phase] for one in side]) for side in (ours, theirs)))
    if FLOP:
        denoise = (statistics.median(one["denoise"] for one in side) for side in (ours, theirs))
        shares = " and ".join(f"{calls * images * FLOP / seconds / rate:.1%}" for seconds in denoise)
        row(f"{what}: share of the matrix rate while denoising", shares)
    row(f"{what}: seconds from the row to the written PNGs", told(whole))
    row(f"{what}: the first pictures of {name}, seconds", f"{first:.1f}")
    row(f"{what}: pictures differ in the mean by, of 255", f"{max(pictures):.3f}", f"at most {PICTURE}")
    # NaN is beyond every bar.
    wrong = [] if ratio <= most else [f"batch of {images}: {ratio:.2f} times the seconds of {name}"]
    return wrong + ([] if max(pictures) <= PICTURE else [f"batch of {images}: other pictures than {name}"])


def main(part):
    compiled = part == "compile"
    name = "diffusers under torch.compile" if compiled else "diffusers"
    model = checkpoint()
    rate = matrix_rate()
    how = f", {MODE}, of {' and '.join(NETWORKS)}, the rest as it is" if compiled else ""
    row(f"a picture against {name}{how}", f"{SIDE}x{SIDE}, {STEPS} steps of PNDM, guidance {GUIDANCE}, {DTYPE}; medians of at least 5 in turn (least to most)")
    row("a matrix product by torch, TFLOP/s", f"{rate / 1e12:.1f}")
    wrong = []
    with torch.inference_mode():
        peer = Peer(model, compiled)
        for images in os.environ.get("BATCHES", "1" if compiled else "1,8").split(","):
            wrong += compare(peer, model, int(images), compiled, name, rate)
    end(wrong)


if __name__ == "__main__":
    main(sys.argv[1])
