"""What the two trainings share: a loop that can be stopped and taken up again, an average of the weights, and files in 16 bits."""
import collections, contextlib, copy, datetime, json, os, pathlib, time

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


def straighteners(grams, steps=5):
    """For each gram X X^T of (k, m, m) the matrix P that makes P X about U V^T of X's singular value decomposition.

    A Newton-Schulz step takes X to Q X and so its gram A to Q A Q, where Q = 3.4445 - 4.775 A + 2.0315 A^2: the steps need the small grams alone.
    """
    size = grams.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
    a = grams / size**2
    for i in range(steps):
        q = torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315)
        q.diagonal(dim1=1, dim2=2).add_(3.4445)
        p = q @ p if i else q / size
        if i < steps - 1:
            a = q @ a @ q
    return p


def rows(t):
    """(o, ...) -> (o, n), a view in the order in which the numbers lie: that of a row's makes no difference to what is orthogonal."""
    return (t if t.is_contiguous() else t.movedim(1, -1)).view(len(t), -1)


class Muon:
    """Muon (Jordan 2024, with the scale of Liu et al. 2025) for matrices and kernels, Adam for vectors; both with decay of the weights.

    torch.optim.Muon takes matrices alone, and most of these weights are kernels. All of one shape move together, and what changes from step
    to step, `rate` too, lies beside them: a step never waits for the card.
    """

    def __init__(self, parameters, momentum=0.95, betas=(0.9, 0.98), decay=1e-3):
        self.all, self.momentum, self.betas, self.decay = list(parameters), momentum, betas, decay
        self.vectors, shapes = [p for p in self.all if p.ndim < 2], collections.defaultdict(list)
        for p in self.all:
            if p.ndim > 1:
                shapes[rows(p.detach()).shape].append(p)
        self.groups = list(shapes.values())
        device = self.all[0].device
        flat = torch.zeros(sum(p.numel() for p in self.vectors), device=device)
        self.rate, self.count = torch.zeros((), device=device), torch.zeros((), dtype=torch.float64, device=device)
        self.m, self.v = flat, flat.clone()
        self.momenta = [torch.zeros(len(group), *shape, device=device) for shape, group in shapes.items()]

    def state(self):
        return [self.count, self.m, self.v, *self.momenta]

    def load(self, state):
        for mine, t in zip(self.state(), state, strict=True):
            mine.copy_(t)

    def forget_gradients(self):
        for p in self.all:
            p.grad = None

    @torch.no_grad()
    def step(self):
        torch._foreach_mul_(self.all, 1 - self.rate * self.decay)
        self.count += 1
        if self.vectors:
            self.move_vectors()
        if self.groups:
            self.move_matrices()

    def move_vectors(self):
        (a, b), g = self.betas, torch.cat([p.grad.flatten() for p in self.vectors])
        self.m.lerp_(g, 1 - a), self.v.lerp_(g * g, 1 - b)
        move = self.m / (1 - a**self.count) / ((self.v / (1 - b**self.count)).sqrt_() + 1e-8) * -self.rate
        torch._foreach_add_(self.vectors, [part.view(p.shape) for p, part in zip(self.vectors, move.split([p.numel() for p in self.vectors]))])

    def move_matrices(self):
        grads = [torch.stack([rows(p.grad) for p in group]) for group in self.groups]
        torch._foreach_lerp_(self.momenta, grads, 1 - self.momentum)
        grads = torch._foreach_lerp(grads, self.momenta, self.momentum)
        wide, sizes, moves = [g.shape[1] < g.shape[2] for g in grads], collections.defaultdict(list), [None] * len(grads)
        for i, g in enumerate(grads):
            sizes[min(g.shape[1:])].append(i)
        with exact_products():  # a gram's digits go half as far
            for same in sizes.values():
                grams = [grads[i] @ grads[i].mT if wide[i] else grads[i].mT @ grads[i] for i in same]
                for i, p in zip(same, straighteners(torch.cat(grams)).split([len(gram) for gram in grams])):
                    moves[i] = p @ grads[i] if wide[i] else grads[i] @ p
        torch._foreach_mul_(moves, [-0.2 * max(move.shape[1:]) ** 0.5 for move in moves])
        torch._foreach_mul_(moves, self.rate)
        torch._foreach_add_([rows(p) for group in self.groups for p in group], [one for move in moves for one in move.unbind()])


@contextlib.contextmanager
def exact_products():
    """Products of matrices in all of f32's digits, where others may be in fewer."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Replay:
    """A step of training as one CUDA graph: its kernels are so short that to launch them one by one would take longer than they do.

    The first calls run the step as it is, on a stream of its own. Then it is captured, and every call replays it. If it cannot be captured,
    it goes on as it is.
    """

    failed = []  # such a graph is kept: the allocator may ask it still

    def __init__(self, step, generator, work, first=3):
        self.step, self.generator, self.work, self.left = step, generator, work, first
        self.graph, self.stream, self.captured = torch.cuda.CUDAGraph(), torch.cuda.Stream(), None

    def __call__(self):
        if self.left:
            self.left -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step()
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.captured is None:
            self.captured = self.capture()
        self.graph.replay() if self.captured else self.step()

    def capture(self):
        try:
            # The outer context brings the stream of before back when the inner one fails.
            with torch.cuda.stream(self.stream), torch.cuda.graph(self.graph, stream=self.stream):
                self.step()
            return True
        except Exception as error:
            log(self.work, f"no CUDA graph, steps are launched one by one: {error.__context__ or error!r}")
            self.failed.append(self.graph)
            # The state of before waits for the end of the capture for ever.
            self.generator.graphsafe_set_state(torch.Generator(self.generator.device).graphsafe_get_state())
            return False


def fit(name, module, loss_of, steps, lr, work, average=0.999, warmup=200, cooldown=0.25, every=100, look=None, look_every=1000):
    """Trains `module`, where it lies, for `steps` steps of Muon and returns the running average of its weights.

    `loss_of(module, generator)` draws a batch with the generator, whose seed is the step (and the worker): a run that was stopped and taken up
    again sees what an unbroken one sees. On a card it is captured, so that all it does must happen on the card. The rate rises over `warmup`
    steps and falls to zero over the last `cooldown` of all.
    `look(average, step)` is called now and then to save pictures. The state lies in `work/name.pt`.
    """
    path, (rank, count), device = work / f"{name}.pt", workers(), next(module.parameters()).device
    optimizer = Muon(p for p in module.parameters() if p.requires_grad)
    ema, start = copy.deepcopy(module).requires_grad_(False), 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"]), ema.load_state_dict(state["ema"]), optimizer.load(state["optimizer"])
        start = state["step"]
    on_card = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index] if on_card else torch.Generator()
    total, weight = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device)

    def one_step():
        loss = loss_of(module, generator)
        optimizer.forget_gradients()
        loss.backward()
        share_gradients(module)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            moves = torch._foreach_sub(list(module.parameters()), list(ema.parameters()))
            torch._foreach_mul_(moves, weight)
            torch._foreach_add_(list(ema.parameters()), moves)
            total.add_(loss.detach())

    run = Replay(one_step, generator, work) if on_card and count == 1 else one_step
    if on_card:
        look_every = max(look_every, -(-steps // 6))
    since, saved, n = time.time(), time.time(), 0
    for step in range(start, steps):
        generator.manual_seed(step * count + rank)  # a graph reads it at every replay
        optimizer.rate.fill_(lr * min(1, (step + 1) / warmup, (steps - step) / max(1, steps * cooldown)))
        weight.fill_(1 - min(average, (step + 1) / (step + 10)))
        run()
        n += 1
        if (step + 1) % every == 0:
            # After a stop they are fewer than `every`.
            loss = total.item() / n
            log(work, f"{name} step {step + 1} of {steps}: loss {loss:.5f}, {(time.time() - since) / n * 1000:.1f} ms a step")
            total.zero_()
            since, n = time.time(), 0
        last = step + 1 == steps
        if rank == 0 and (last or time.time() - saved > 30):
            torch.save(dict(module=module.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state(), step=step + 1), path.with_suffix(".new"))
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
