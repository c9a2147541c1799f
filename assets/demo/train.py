"""Both demo checkpoints from nothing, and their score, with one command.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 safetensors pillow numpy
    python assets/demo/train.py --work /tmp/demo [--workers 2]

Every part is seeded, and takes up where it was stopped when the command is given again. The log and pictures on the way lie in
the work folder. Workers are processes of one thread that share the batches of txt2img; with a CUDA card, which takes it alone, there is one.
"""
import argparse, os, pathlib, subprocess, sys

import torch

HERE = pathlib.Path(__file__).resolve().parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--workers", type=int, default=1 if torch.cuda.is_available() else 2)
    args = parser.parse_args()

    def run(part, script, *more, launch=()):
        command = [sys.executable, *launch, HERE / script, "--work", args.work / part, *more]
        subprocess.run(command, check=True, env=dict(os.environ, OMP_NUM_THREADS="1"))

    workers = ("-m", "torch.distributed.run", "--nproc-per-node", str(args.workers))
    run("txt2img", "train_txt2img.py", launch=workers)
    run("ddpm", "train_ddpm.py")
    run("judge", "judge.py", "--sheet", HERE.parent / "gallery/demo.png")
