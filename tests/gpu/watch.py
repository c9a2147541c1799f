"""The parts `memory`, `profile` and `runs`: what one process of the program does on the card."""
import collections
import csv
import shutil
import subprocess
import sys

from card import CPU, SIDE, STEPS, WORK, Peak, Program, arguments, bare_context, card, checkpoint, end, not_run, row

# Bytes beyond a bare context for one picture at 512x512 in f16.
MEMORY = 3.0e9
# What a driver may keep for itself from one moment to another.
GROWTH = 16 << 20
RUNS, RUN_STEPS = 200, 4
KERNELS = 20


def model_without_torch():
    """The checkpoint; to make it takes torch and diffusers."""
    try:
        return checkpoint()
    except subprocess.CalledProcessError:
        not_run("the checkpoint could not be made; it takes torch and diffusers")


def gigabytes(size):
    return f"{size / 1e9:.3f} GB"


def memory():
    watched, model = card(), model_without_torch()
    bare, wrong = bare_context(watched), []
    row("a bare context", gigabytes(bare))
    # As someone types it: what is not needed again is let go.
    before = watched.used()
    picture = arguments(model, 1, "--steps", STEPS, "--seed", 1, "-vv", "--output", WORK / "memory.png", "a cat")
    said = WORK / "memory.said"
    with open(said, "w") as log, subprocess.Popen(picture, stdout=subprocess.DEVNULL, stderr=log) as process, Peak(watched, process) as peak:
        code = process.wait()
    if code:
        end([f"the program ended with {code}: {said.read_text()[-300:]}"])
    for line in said.read_text().splitlines():
        if "the card's memory " in line:
            row(*line.split("the card's ")[1].split(": ", 1))
    beyond = peak.most - before - bare
    row(f"one picture at {SIDE}x{SIDE}: the most beyond a bare context", gigabytes(beyond), gigabytes(MEMORY))
    if beyond > MEMORY:
        wrong.append(f"{gigabytes(beyond)} beyond a bare context, over {gigabytes(MEMORY)}")
    # Row after row, with all that the next row takes.
    for images in (1, 8):
        before = watched.used()
        with Program(model, images) as program, Peak(watched, program.process) as peak:
            for seed in (1, 100):
                program.draw("a cat", seed)
            between = watched.used(program.process)
        row(f"rows, batch of {images} at {SIDE}x{SIDE}: the most beyond a bare context", gigabytes(peak.most - before - bare))
        row(f"rows, batch of {images} at {SIDE}x{SIDE}: the same between two rows", gigabytes(between - before - bare))
    end(wrong)


def runs():
    watched, model = card(), model_without_torch()
    used, pixels = [], []
    with Program(model, steps=RUN_STEPS) as program:
        for turn in range(RUNS):
            seed = 7 if turn in (0, RUNS - 1) else 1000 + turn
            prompt = "a cat" if seed == 7 else f"a dog and {'the moon and ' * (turn % 9)} a tree"
            (told,), _ = program.draw(prompt, seed)
            pixels.append(told["pixels"])
            used.append(watched.used(program.process))
    early, late = max(used[20:40]), max(used[-20:])
    row(f"{RUNS} pictures of {RUN_STEPS} steps in one process: memory after the 40th and the last", f"{gigabytes(early)} and {gigabytes(late)}", f"{GROWTH >> 20} MiB more at most")
    row("the first and the last, of one seed: sha256 of the pixels", f"{pixels[0][:12]} and {pixels[-1][:12]}", "equal")
    wrong = [] if late - early <= GROWTH else [f"memory grew by {(late - early) >> 20} MiB"]
    if pixels[0] != pixels[-1]:
        wrong.append("the same seed gave another picture at the end")
    if len(set(pixels)) != RUNS - 1:
        wrong.append("different seeds gave the same picture")
    end(wrong)


def columns(lines, start, name, time):
    """Two columns of a CSV that stands below other lines."""
    lines = list(lines)
    first = next((k for k, line in enumerate(lines) if line.lstrip('"').startswith(start)), None)
    if first is None:
        raise RuntimeError(f"no column {start} in what the profiler wrote")
    table = csv.DictReader(lines[first:])
    return [(one[name], one[time]) for one in table]


def nsys(command):
    """Nanoseconds by kernel, and how often each ran."""
    report = WORK / "profile.nsys-rep"
    subprocess.run(["nsys", "profile", "--trace", "cuda", "--cuda-graph-trace", "node", "--sample", "none", "--cpuctxsw", "none", "--force-overwrite", "true", "--output", report, *command], check=True)
    stats = subprocess.run(["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", "--force-export", "true", report], check=True, capture_output=True, text=True)
    lines = stats.stdout.splitlines()
    total = columns(lines, "Time (%)", "Name", "Total Time (ns)")
    count = dict(columns(lines, "Time (%)", "Name", "Instances"))
    return {name: float(time) for name, time in total}, {name: int(number) for name, number in count.items()}


def ncu(command):
    """The same by the profiler of single kernels, which stops at each: a call of the UNet takes a minute."""
    log = WORK / "ncu.csv"
    # The clocks stay as they are.
    how = ["--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", "--page", "raw", "--print-units", "base", "--log-file", log]
    subprocess.run(["ncu", *how, *command], check=True)
    times, counts = collections.Counter(), collections.Counter()
    for name, time in columns(log.read_text().splitlines(), "ID", "Kernel Name", "gpu__time_duration.sum"):
        # The first line below the names has the units.
        if name:
            times[name] += float(time.replace(",", ""))
            counts[name] += 1
    return times, counts


def profile():
    profiler = next((one for one in (nsys, ncu) if shutil.which(one.__name__)), None)
    if CPU or profiler is None:
        not_run("the CPU runs no kernels of a card" if CPU else "neither nsys nor ncu is installed")
    calls = 4 if profiler is nsys else 1
    more = ["--steps", calls, "--scheduler", "ddim", "--seed", 1, "--quiet", "--output", WORK / "profile.png"]
    times, counts = profiler(arguments(model_without_torch(), 1, *more, "a cat"))
    whole = sum(times.values())
    if not whole:
        end(["the profiler saw no kernel"])
    row(f"kernels of a picture with {calls} calls of the UNet, by {profiler.__name__}", f"{sum(counts.values())} in {whole / 1e6:.1f} ms")
    for name, time in sorted(times.items(), key=lambda one: -one[1])[:KERNELS]:
        row(f"`{name[:90].replace('|', '/')}`", f"{time / whole:.1%}, {counts[name]} times, {time / counts[name] / 1e3:.1f} µs each")
    end([])


if __name__ == "__main__":
    {"memory": memory, "profile": profile, "runs": runs}[sys.argv[1]]()
