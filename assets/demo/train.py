"""Both demo checkpoints from nothing, and their score, with one command.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 safetensors pillow numpy
    python assets/demo/train.py --work /tmp/demo [--workers 2]

Every part is seeded, and takes up where it was stopped when the command is given again. The log and pictures on the way lie in
the work folder. Workers are processes of one thread that share the batches of txt2img; with a CUDA card, which takes it alone, there is one. The cats and
the judge learn at the same time.
"""
import argparse, os, pathlib, subprocess, sys

import torch

HERE = pathlib.Path(__file__).resolve().parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--workers", type=int, default=1 if torch.cuda.is_available() else 2)
    args = parser.parse_args()

    def start(part, script, *more, launch=()):
        command = [sys.executable, *launch, HERE / script, "--work", args.work / part, *more]
        return subprocess.Popen(command, env=dict(os.environ, OMP_NUM_THREADS="1"))

    def wait(*parts):
        if any([part.wait() for part in parts]):
            sys.exit("a part has failed; what it said stands above")

    workers = ("-m", "torch.distributed.run", "--nproc-per-node", str(args.workers))
    wait(start("txt2img", "train_txt2img.py", launch=workers))
    wait(start("ddpm", "train_ddpm.py"), start("judge", "judge.py", "--sheet", HERE.parent / "gallery/demo.png"))
