"""Whether the demo draws what it is told: 500 captions whose meaning it never saw, scored by a network that knows only the drawings.

    python judge.py --work /tmp/judge                  # trains the judge (minutes), scores txt2img, prints the table

The judge sees 64x64 pixels and says where the centre of which thing is, its colour, and the place. It never sees a caption and
nothing that the checkpoint made. A caption is met in its
    things      if every thing it names is found, each in its colour (its natural one where none is named)
    relation    if that holds and the centres stand as the relation says
    count       if exactly so many things are found, and nothing else
    place       if the place is found; a caption without one means the plain wall
"""
import argparse, collections, json, math, pathlib, random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import world
from common import fit, log

HERE = pathlib.Path(__file__).resolve().parent
CELL, GRID = 4, 16
PLACES = [None, *world.PLACES]
CAPTIONS, STEPS, PICTURES = 500, 25, 30000


class Judge(nn.Module):
    """(n, 3, 64, 64) -> logits of a thing's centre in each cell (n, 14, 16, 16), of its colour (n, 9, 16, 16), of the place (n, 6)"""

    def __init__(self, width=48):
        super().__init__()
        torch.manual_seed(4)
        conv = lambda a, b, stride=1, dilation=1: nn.Sequential(nn.Conv2d(a, b, 3, stride, dilation, dilation), nn.GroupNorm(4, b), nn.SiLU())
        self.stem = nn.Sequential(conv(3, 16, 2), conv(16, width, 2))
        self.body = nn.ModuleList(conv(width, width, dilation=d) for d in (1, 2, 1, 2, 1, 1))
        self.things, self.colours = nn.Conv2d(width, len(world.THINGS), 1), nn.Conv2d(width, len(world.COLOURS), 1)
        self.place = nn.Linear(width, len(PLACES))
        nn.init.constant_(self.things.bias, -4)

    def forward(self, x):
        h = self.stem(x)
        for layer in self.body:
            h = h + layer(h)
        return self.things(h), self.colours(h), self.place(h.mean((2, 3)))


def cell(value):
    return min(GRID - 1, max(0, int(value / CELL)))


def train(args):
    rng = random.Random(5)
    scenes = [world.sample_scene(rng, held_out=rng.random() < 0.05) for _ in range(PICTURES)]
    drawn, batch = np.stack([world.draw(scene) for scene in scenes]), 32

    def loss_of(judge, g):
        pick = torch.randint(len(scenes), (batch,), generator=g).tolist()
        x = torch.from_numpy(drawn[pick]).permute(0, 3, 1, 2).float() / 127.5 - 1
        # Softer and noisier than a drawing, as a decoder's pictures are.
        soft = F.avg_pool2d(x, 3, 1, 1)
        x = torch.lerp(x, soft, torch.rand((batch, 1, 1, 1), generator=g)) + torch.randn(x.shape, generator=g) * torch.rand((batch, 1, 1, 1), generator=g) * 0.15
        heat, colours, at = torch.zeros(batch, len(world.THINGS), GRID, GRID), [], []
        for i, k in enumerate(pick):
            for thing in scenes[k].things:
                a, b = cell(thing.y), cell(thing.x)
                heat[i, world.THINGS.index(thing.name), a, b] = 1
                at.append((i, a, b)), colours.append(list(world.COLOURS).index(thing.colour))
        seen_heat, seen_colours, seen_place = judge(x)
        i, a, b = torch.tensor(at).T
        return (F.binary_cross_entropy_with_logits(seen_heat, heat, reduction="sum") / batch + F.cross_entropy(seen_colours[i, :, a, b], torch.tensor(colours))
                + F.cross_entropy(seen_place, torch.tensor([PLACES.index(scenes[k].place) for k in pick])))

    return fit("judge", Judge(), loss_of, args.judge_steps, 2e-3, args.work, cooldown=0.6, every=250)


def look(judge, pictures):
    """For each uint8 picture: its place, and (name, colour, x, y) of each thing found in it."""
    with torch.no_grad():
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        heat, colours, place = judge(x)
    heat = heat.sigmoid()
    # What lies between two cells counts for both: a centre is the best cell of its neighbourhood, with its neighbours' shares.
    mass = F.avg_pool2d(heat, 3, 1, 1, count_include_pad=False) * 9
    found = []
    for i in range(len(pictures)):
        things, left = [], mass[i].clone()
        while left.max() > 0.5:
            k, a, b = np.unravel_index(int(left.argmax()), left.shape)
            around = np.s_[max(0, a - 1) : min(GRID, a + 2), max(0, b - 1) : min(GRID, b + 2)]
            weights = heat[i, k][around]
            ys, xs = np.mgrid[around]
            y, x_ = [float((weights * torch.from_numpy(v + 0.5)).sum() / weights.sum()) * CELL for v in (ys, xs)]
            tint = (colours[i][:, around[0], around[1]].log_softmax(0) * weights).sum((1, 2)).argmax()
            things.append((world.THINGS[k], list(world.COLOURS)[int(tint)], x_, y))
            left[:, max(0, a - 2) : a + 3, max(0, b - 2) : b + 3] = 0
        found.append((PLACES[int(place[i].argmax())], things))
    return found


def stands(relation, first, second):
    """Whether two centres stand so; y grows downwards."""
    dx, dy = first[2] - second[2], first[3] - second[3]
    if relation == "riding":
        return -20 < dy < -5 and abs(dx) < 9
    if relation in ("above", "below"):
        return abs(dy) > max(20, 1.5 * abs(dx)) and (dy < 0) == (relation == "above")
    return abs(dx) > max(20, 1.5 * abs(dy)) and (relation == "beside" or (dx < 0) == (relation == "left"))


def verdict(scene, place, found):
    """What of the caption is met: a dict of True, False, or None where the caption does not speak of it."""
    left, all_found = list(found), True
    for thing in scene.things:
        match = next((t for t in left if t[:2] == (thing.name, thing.colour)), None)
        all_found &= match is not None
        if match:
            left.remove(match)
    relation = count = None
    if scene.relation:
        pairs = [(a, b) for a in found for b in found if a is not b and (a[:2], b[:2]) == tuple((t.name, t.colour) for t in scene.things)]
        relation = any(stands(scene.relation, a, b) for a, b in pairs)
    elif len(scene.things) > 1:
        count = all_found and not left
    return dict(things=all_found, relation=relation, count=count, place=place == scene.place, nothing_else=not left)


def kind(scene):
    return scene.relation or {1: "one thing", 2: "two of a kind", 3: "three of a kind"}[len(scene.things)]


def table(scenes, verdicts):
    """{row: {column: share met}}, rows by kind of caption."""
    rows = collections.defaultdict(list)
    for scene, v in zip(scenes, verdicts):
        rows["all"].append(v), rows[kind(scene)].append(v)
    share = lambda vs, key: (lambda xs: sum(xs) / len(xs) if xs else None)([v[key] for v in vs if v[key] is not None])
    return {row: dict(captions=len(vs), **{key: share(vs, key) for key in vs[0]}) for row, vs in rows.items()}


def draw_all(folder, captions, guidance, batch=50):
    """uint8 pictures: UniPC, 25 steps, the seed of a caption is its number."""
    from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    out = []
    for i in range(0, len(captions), batch):
        part = captions[i : i + batch]
        seeds = [torch.Generator().manual_seed(i + k) for k in range(len(part))]
        out += list((pipe(part, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds, output_type="np").images * 255).round().astype(np.uint8))
    return out


def test_captions(count=CAPTIONS):
    """Scenes of meanings held out from training, and a caption for each."""
    rng = random.Random(2024)
    scenes = [world.sample_scene(rng, held_out=True) for _ in range(count)]
    return scenes, [world.caption(scene, rng) for scene in scenes]


def print_table(rows):
    print(f"{'':16}captions   things relation    count    place  nothing else")
    show = lambda v: "       -" if v is None else f"{v:8.1%}"
    for row, v in rows.items():
        print(f"{row:16}{v['captions']:8} " + " ".join(show(v[key]) for key in ("things", "relation", "count", "place", "nothing_else")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the judge's weights, its log and scores.json")
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "txt2img")
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--judge-steps", type=int, default=6000)
    parser.add_argument("--sheet", type=pathlib.Path, help="also write the pictures of the first 16 captions")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    judge = train(args)
    scenes, captions = test_captions(args.captions)
    score = lambda pictures: [verdict(s, *f) for s, f in zip(scenes, look(judge, pictures))]
    results = {"the drawings themselves": score([world.draw(scene) for scene in scenes])}
    if args.model.exists():
        for guidance in (7.5, 10.0, 4.0, 1.0):
            pictures = draw_all(args.model, captions, guidance)
            results[f"guidance {guidance}"] = score(pictures)
            if args.sheet and guidance == 7.5:
                world.sheet(pictures[:16], 8).save(args.sheet)
                world.sheet(pictures[:160], 16).save(args.work / "pictures.png")
    for name, verdicts in results.items():
        print(f"\n{name}")
        print_table(table(scenes, verdicts))
    failures = [c for c, v in zip(captions, results.get("guidance 7.5", [])) if not v["things"] or v["relation"] is False or v["count"] is False]
    (args.work / "scores.json").write_text(json.dumps(dict(tables={n: table(scenes, v) for n, v in results.items()}, failures=failures), indent=1))
    print("\nfirst failures:", *failures[:20], sep="\n  ")


if __name__ == "__main__":
    main()
