"""What the parts share: where results go, the card's memory, the program. Run by itself it heads the table of results.

Needs the driver's libraries and nothing of PyPI.
"""
import contextlib
import ctypes
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "gpu"
OUT = pathlib.Path(os.environ.get("OUT", WORK))
DIFFUSE = os.environ.get("DIFFUSE", ROOT / "target" / "release" / "diffuse")
DEVICE = os.environ.get("DEVICE", "cuda")
# Without a card the scripts themselves are tried, on a checkpoint that takes no time.
CPU = DEVICE == "cpu"
SIDE, DTYPE, STEPS, GUIDANCE = (64, "f32", 25, 7.5) if CPU else (512, "f16", 25, 7.5)
NOT_RUN = 3


def row(what, result, bar=""):
    """A line of the table, printed and written at once."""
    line = f"| {what} | {result} | {bar} |"
    print(line)
    with open(OUT / "results.md", "a") as table:
        table.write(line + "\n")


def end(failures):
    """The last line that is printed is the reason that the part gives."""
    if failures:
        print("; ".join(failures))
        sys.exit(1)
    sys.exit(0)


def not_run(why):
    print(why)
    sys.exit(NOT_RUN)


class Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Card:
    """The first card as NVML sees it: memory of all processes together, since a container hides whose it is."""

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.handle = ctypes.c_void_p()
        self.call("nvmlInit_v2")
        # The first that CUDA sees, which is not always NVML's first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        if visible.startswith("GPU-"):
            self.call("nvmlDeviceGetHandleByUUID", visible.encode(), ctypes.byref(self.handle))
        else:
            number = int(visible) if visible.isdigit() else 0
            self.call("nvmlDeviceGetHandleByIndex_v2", number, ctypes.byref(self.handle))

    def call(self, name, *args):
        code = getattr(self.nvml, name)(*args)
        if code != 0:
            raise RuntimeError(f"{name} gave {code}")

    def text(self, name, *args):
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *args, buffer, len(buffer))
        return buffer.value.decode()

    def about(self):
        return f"{self.text('nvmlDeviceGetName', self.handle)}, driver {self.text('nvmlSystemGetDriverVersion')}"

    def used(self, process=None):
        memory = Memory()
        self.call("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(memory))
        return memory.used


class NoCard:
    """The CPU in a card's place: the resident memory of the process."""

    def about(self):
        return "no card: the CPU in its place, which tries the scripts and no more"

    def used(self, process=None):
        if process is None:
            return 0
        with contextlib.suppress(OSError, IndexError):
            return int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0


def card():
    if CPU:
        return NoCard()
    try:
        return Card()
    except (OSError, RuntimeError) as error:
        not_run(f"no card: {error}")


# The primary context of the first card, and nothing else.
BARE = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0 and cuda.cuCtxSetCurrent(context) == 0
"""
HOLD = 'import sys; print("ready", flush=True); sys.stdin.read()'


def bare_context(card):
    """Bytes that a process takes before it has asked for any."""
    before = card.used()
    code = HOLD if CPU else BARE + HOLD
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("no CUDA context could be opened")
        taken = card.used(process) - before
        process.stdin.close()
    return taken


class Peak(threading.Thread):
    """The most memory that was seen while it ran, looked at every two milliseconds."""

    def __init__(self, card, process):
        super().__init__(daemon=True)
        self.card, self.process, self.most, self.stop = card, process, 0, threading.Event()

    def run(self):
        while not self.stop.wait(0.002):
            self.most = max(self.most, self.card.used(self.process))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join()


def arguments(model, images, *more):
    """A command line of the program, without the prompt."""
    size = ["--width", SIDE, "--height", SIDE, "--guidance-scale", GUIDANCE, "--batch-size", images, "--num-images", images]
    place = ["--model", model, "--device", DEVICE, "--dtype", DTYPE, "--offline", "--no-metadata", "--overwrite"]
    return [str(word) for word in [DIFFUSE, "txt2img", *place, *size, *more]]


class Program:
    """One process of the program. It draws a row when it has read it, so that others can be timed between two of its pictures."""

    def __init__(self, model, images=1, steps=STEPS):
        self.images = images
        pattern = WORK / "pictures" / "{index}-{seed}.png"
        rows = ["--prompts", "-", "--steps", steps, "--json", "--quiet", "--parents", "--output", pattern]
        self.process = subprocess.Popen(arguments(model, images, *rows), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def draw(self, prompt, seed):
        """The objects of `--json`, one for each picture, and the seconds from the row to the last of them."""
        start = time.perf_counter()
        self.process.stdin.write(json.dumps({"prompt": prompt, "seed": seed}) + "\n")
        self.process.stdin.flush()
        told = []
        for _ in range(self.images):
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"diffuse ended with exit code {self.process.wait()}")
            told.append(json.loads(line))
            if "error" in told[-1]:
                raise RuntimeError("diffuse: " + told[-1]["error"])
        return told, time.perf_counter() - start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # It may have died, and that is what is to be told.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def checkpoint():
    """A folder with a model to draw with: the architecture of SD 1.5, made when it is first asked for."""
    if CPU:
        return ROOT / "assets" / "tiny-sd"
    folder = WORK / "sd15"
    if not (folder / "model_index.json").exists():
        subprocess.run([sys.executable, ROOT / "tests" / "gpu" / "checkpoint.py", folder], check=True)
    return folder


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def head():
    about = card().about()
    versions = [said(DIFFUSE, "--version"), said("git", "rev-parse", "--short", "HEAD"), f"Python {platform.python_version()}"]
    versions += [version(package) for package in ("torch", "diffusers", "transformers")]
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    lines = [f"{about}; {when} UTC; {', '.join(filter(None, versions))}", "", "| what | result | bar |", "|---|---|---|"]
    print("\n".join(lines))
    with open(OUT / "results.md", "a") as table:
        table.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    head()
