"""What the two trainings share: a loop that can be stopped and taken up again, an average of the weights, and files in 16 bits."""
import copy, datetime, json, os, pathlib, time

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file


def start_workers():
    """Under `torchrun --nproc-per-node N` each of N processes takes its share of every batch."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=datetime.timedelta(hours=3))


def workers():
    """(which of them this one is, how many there are)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def once(path, make):
    """Lets the first worker make a file that is not there; the others wait for it."""
    if workers()[0] == 0 and not path.exists():
        make(path)
    if dist.is_initialized():
        dist.barrier()
    return path


def share_gradients(module):
    """Every worker's gradient becomes the mean of all."""
    _, count = workers()
    if count > 1:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(part.view_as(g) / count)


def log(work, text):
    if workers()[0]:
        return
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with open(work / "log.txt", "a") as f:
        f.write(line + "\n")


def orthogonal(g):
    """(m, n) -> about U V^T of its singular value decomposition, by five Newton-Schulz steps."""
    x = g / (g.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x if x.shape == g.shape else x.T


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024, with the scale of Liu et al. 2025) for matrices and kernels, Adam for vectors; both with decay of the weights.

    torch.optim.Muon takes matrices alone, and most of these weights are kernels.
    """

    def __init__(self, parameters, lr, momentum=0.95, betas=(0.9, 0.98), decay=1e-3):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, betas=betas, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.move(p, self.state[p], **group)

    def move(self, p, state, lr, momentum, betas, decay, **_):
        g = p.grad
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p) if p.ndim < 2 else None)
        state["step"] += 1
        p.mul_(1 - lr * decay)
        if p.ndim < 2:
            (a, b), n = betas, state["step"]
            state["m"].lerp_(g, 1 - a), state["v"].lerp_(g * g, 1 - b)
            p.addcdiv_(state["m"] / (1 - a**n), (state["v"] / (1 - b**n)).sqrt_().add_(1e-8), value=-lr)
        else:
            state["m"].lerp_(g, 1 - momentum)
            u = orthogonal(g.lerp(state["m"], momentum).flatten(1))
            p.add_(u.view(p.shape), alpha=-0.2 * lr * max(u.shape) ** 0.5)


def fit(name, module, loss_of, steps, lr, work, average=0.999, warmup=200, cooldown=0.25, every=100, look=None, look_every=1000):
    """Trains `module` for `steps` steps of Muon and returns the running average of its weights.

    `loss_of(module, generator)` draws a batch with the generator, whose seed is the step (and the worker): a run that was stopped and taken up
    again sees what an unbroken one sees. The rate rises over `warmup` steps and falls to zero over the last `cooldown` of all.
    `look(average, step)` is called now and then to save pictures. The state lies in `work/name.pt`.
    """
    path, (rank, count) = work / f"{name}.pt", workers()
    optimizer = Muon([p for p in module.parameters() if p.requires_grad], lr)
    ema, start = copy.deepcopy(module).requires_grad_(False), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"]), ema.load_state_dict(state["ema"]), optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    losses, since, saved = [], time.time(), time.time()
    for step in range(start, steps):
        rate = lr * min(1, (step + 1) / warmup, (steps - step) / max(1, steps * cooldown))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(module, torch.Generator().manual_seed(step * count + rank))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(module)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(average, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - keep)
        losses.append(loss.item())
        if (step + 1) % every == 0:
            # After a stop they are fewer than `every`.
            n = len(losses)
            log(work, f"{name} step {step + 1} of {steps}: loss {sum(losses) / n:.5f}, {(time.time() - since) / n * 1000:.0f} ms a step")
            losses, since = [], time.time()
        last = step + 1 == steps
        if rank == 0 and (last or time.time() - saved > 120):
            torch.save(dict(module=module.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(), step=step + 1), path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)
            saved = time.time()
        if rank == 0 and look and (last or (step + 1) % look_every == 0):
            look(ema, step + 1)
    return ema.eval()


def halve(folder):
    """Rewrites the weights under `folder` in 16 bits and takes paths of this machine out of the configs."""
    for path in pathlib.Path(folder).rglob("*.safetensors"):
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}
        save_file(tensors, path, metadata=dict(format="pt"))
    for path in pathlib.Path(folder).rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def size_of(folder):
    """The size of a folder in bytes."""
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
