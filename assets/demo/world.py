"""The world that the demo checkpoints are trained on: scenes, their captions and their drawings.

    scene = sample_scene(rng)           what is there and where
    caption(scene, rng)                 an English sentence for it; every call words it anew
    draw(scene)                         64x64 pixels, uint8 (64, 64, 3)

Run by itself it writes a sheet of scenes with their captions to look at: `python world.py sheet.png`.
"""
import dataclasses, hashlib, math, random, sys

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
ZOOM = 4  # drawn larger and averaged, so that edges are smooth

COLOURS = dict(red=(222, 45, 48), orange=(248, 140, 30), yellow=(252, 220, 50), green=(40, 150, 70), blue=(45, 95, 225), purple=(145, 65, 190),
               brown=(128, 76, 40), gray=(140, 145, 155), white=(252, 252, 252))
# A thing whose colour is not named has this one.
NATURAL = dict(astronaut="white", horse="brown", cat="orange", dog="brown", robot="gray", house="red", tree="green", sun="yellow", moon="yellow",
               star="yellow", heart="red", circle="blue", square="green", triangle="purple")
THINGS = list(NATURAL)
RIDERS, MOUNTS = ["astronaut", "robot", "cat"], ["horse", "dog"]
PLACES = dict(space=["in space", "in outer space"], grass=["on the grass", "in a meadow", "in a field"], sea=["at sea", "on the sea", "in the ocean"],
              night=["at night", "in the night", "under the night sky"], desert=["in the desert", "in a desert", "on mars"])
RELATIONS = dict(riding=["riding", "riding", "sitting on", "on the back of"], above=["above", "above", "over", "on top of"], below=["below", "below", "under", "beneath"],
                 left=["left of", "to the left of", "on the left of"], right=["right of", "to the right of", "on the right of"],
                 beside=["next to", "next to", "beside", "and"])
NUMBERS = {2: ["two", "2"], 3: ["three", "3"]}
OPENINGS = ["a picture of", "a drawing of", "a painting of", "a photo of", "an image of"]
FAVOURITE = "an astronaut riding a horse"
DARK, GLASS, SKIN, LAMP, WOOD = (35, 32, 40), (70, 170, 215), (245, 160, 165), (255, 236, 140), (120, 72, 42)


@dataclasses.dataclass(frozen=True)
class Thing:
    name: str
    colour: str
    named: bool  # whether the caption tells the colour
    x: float  # centre and half height, in pixels
    y: float
    r: float


@dataclasses.dataclass(frozen=True)
class Scene:
    things: tuple  # of Thing; for a relation the first is the subject
    relation: str | None  # a key of RELATIONS
    place: str | None  # a key of PLACES; none is a plain wall
    seed: int  # of the details: the stars of the sky

    def key(self):
        """What the caption can tell: two scenes of one key may have the same caption."""
        things = ";".join(f"{t.name},{t.colour if t.named else '-'}" for t in self.things)
        return f"{things}|{self.relation}|{self.place}"

    def is_held_out(self):
        """One meaning in twenty is never shown in training: the test captions are made of these."""
        if self.key() == "astronaut,-;horse,-|riding|None":
            return False
        return hashlib.sha256(self.key().encode()).digest()[0] < 13


def sample_scene(rng, held_out=False, kind=None):
    while True:
        scene = _sample(rng, kind)
        if scene.is_held_out() == held_out:
            return scene


def _sample(rng, kind):
    kind = kind or rng.choices(["one", "pair", "riding", "count"], [30, 36, 17, 17])[0]
    place = rng.choice(list(PLACES)) if rng.random() < 0.55 else None
    seed = rng.randrange(1 << 30)
    jitter = lambda by: rng.uniform(-by, by)

    def thing(name, x, y, r):
        named = rng.random() < 0.7
        colour = rng.choice(list(COLOURS)) if named else NATURAL[name]
        return Thing(name, colour, named, x, y, r)

    if kind == "one":
        things, relation = [thing(rng.choice(THINGS), 32 + jitter(4), 32 + jitter(3), rng.uniform(18, 21))], None
    elif kind == "riding":
        mount = thing(rng.choice(MOUNTS), 32 + jitter(3), 42 + jitter(2), rng.uniform(16.5, 18))
        # The saddle is a little above the middle of the mount's back.
        rider = thing(rng.choice(RIDERS), mount.x - 0.1 * mount.r, mount.y - 0.62 * mount.r, 0.72 * mount.r)
        things, relation = [rider, mount], "riding"
    elif kind == "count":
        n, name = rng.choice([2, 3]), rng.choice(THINGS)
        first = thing(name, 0, 0, rng.uniform(12, 13) if n == 2 else rng.uniform(9, 10))
        spread = 15 if n == 2 else 21
        things = [dataclasses.replace(first, x=32 + spread * (2 * i / (n - 1) - 1) + jitter(0.5), y=32 + jitter(2)) for i in range(n)]
        relation = None
    else:
        relation = rng.choice(["above", "below", "left", "right", "beside"])
        names = rng.sample(THINGS, 2)
        side = dict(above=(0, -1), below=(0, 1), left=(-1, 0), right=(1, 0), beside=(rng.choice([-1, 1]), 0))[relation]
        dx, dy = side[0] * 15.5, side[1] * 15.5
        things = [thing(name, 32 + sign * dx + jitter(1.5), 32 + sign * dy + jitter(1.5), rng.uniform(12.5, 13.5)) for name, sign in zip(names, [1, -1])]
    return Scene(tuple(things), relation, place, seed)


def caption(scene, rng):
    """One of the sentences that describe the scene."""
    def noun(thing, article=True):
        words = [_grey(thing.colour, rng), thing.name] if thing.named else [thing.name]
        if not article:
            return words
        first = "the" if rng.random() < 0.1 else "an" if words[0][0] in "aeiou" else "a"
        return [first, *words]

    first = scene.things[0]
    if scene.relation:
        words = [*noun(first), rng.choice(RELATIONS[scene.relation]), *noun(scene.things[1])]
    elif len(scene.things) > 1:
        words = [rng.choice(NUMBERS[len(scene.things)]), *noun(first, article=False)]
        words[-1] += "s"
    else:
        words = noun(first)
    if rng.random() < 0.15 and words[0] in ("a", "an", "the"):
        words = words[1:]
    if scene.place:
        words.append(rng.choice(PLACES[scene.place]))
    if rng.random() < 0.2:
        words.insert(0, rng.choice(OPENINGS))
    return " ".join(words)


def _grey(colour, rng):
    return "grey" if colour == "gray" and rng.random() < 0.3 else colour


def vocabulary():
    """Every word that captions are made of."""
    nested = [THINGS, [f"{name}s" for name in THINGS], COLOURS, ["grey", "a", "an", "the", "one"], OPENINGS, *PLACES.values(), *RELATIONS.values(), *NUMBERS.values()]
    return sorted({word for texts in nested for text in texts for word in text.split()})


class Pen:
    """Draws in a thing's own coordinates: its centre is (0, 0), its top -1, its foot 1, and x grows to the right."""

    def __init__(self, canvas, x, y, r):
        self.canvas, self.x, self.y, self.r = canvas, x * ZOOM, y * ZOOM, r * ZOOM

    def polygon(self, colour, *points):
        self.canvas.polygon([(self.x + self.r * a, self.y + self.r * b) for a, b in points], fill=colour)

    def box(self, colour, left, top, right, bottom):
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def oval(self, colour, x, y, rx, ry=None):
        rx, ry = self.r * rx, self.r * (rx if ry is None else ry)
        x, y = self.x + self.r * x, self.y + self.r * y
        self.canvas.ellipse([x - rx, y - ry, x + rx, y + ry], fill=colour)


def shade(colour, by):
    return tuple(int(c * by) for c in colour)


def ring(n, radius, turn=0.0):
    return [(radius * math.sin(2 * math.pi * (i + turn) / n), -radius * math.cos(2 * math.pi * (i + turn) / n)) for i in range(n)]


def draw_astronaut(pen, c, seated=False):
    pen.box(shade(c, 0.6), -0.5, -0.25, 0.2, 0.4)  # the pack
    pen.oval(c, 0.02, 0.1, 0.4, 0.5)
    if not seated:
        pen.box(c, -0.36, 0.4, -0.04, 1), pen.box(c, 0.08, 0.4, 0.4, 1)
        pen.box(shade(c, 0.6), -0.36, 0.82, -0.04, 1), pen.box(shade(c, 0.6), 0.08, 0.82, 0.4, 1)
    pen.polygon(c, (0.2, -0.2), (0.8, 0.1), (0.72, 0.32), (0.15, 0.15))
    pen.oval(c, 0.05, -0.52, 0.48)
    pen.oval(DARK, 0.18, -0.52, 0.32, 0.28)
    pen.oval(GLASS, 0.26, -0.6, 0.12, 0.1)


def draw_robot(pen, c, seated=False):
    pen.box(DARK, -0.04, -1, 0.04, -0.75), pen.oval(COLOURS["red"], 0, -0.95, 0.1)
    pen.box(c, -0.42, -0.8, 0.42, -0.18)
    pen.oval(LAMP, -0.18, -0.5, 0.14), pen.oval(LAMP, 0.2, -0.5, 0.14)
    pen.box(shade(c, 0.7), -0.5, -0.1, 0.5, 0.5)
    pen.box(LAMP, -0.2, 0.08, 0.2, 0.25)
    pen.box(c, -0.75, -0.08, -0.55, 0.4), pen.box(c, 0.55, -0.08, 0.75, 0.4)
    if not seated:
        pen.box(c, -0.38, 0.5, -0.12, 1), pen.box(c, 0.12, 0.5, 0.38, 1)


def draw_cat(pen, c, seated=False):
    pen.polygon(shade(c, 0.7), (0.3, 0.95), (0.9, 0.8), (0.85, 0.15), (0.68, 0.15), (0.7, 0.68), (0.3, 0.75))
    pen.oval(c, 0, 0.48, 0.48, 0.52)
    pen.oval(shade(c, 0.7), -0.2, 0.92, 0.18, 0.1), pen.oval(shade(c, 0.7), 0.2, 0.92, 0.18, 0.1)
    pen.polygon(c, (-0.52, -1), (-0.5, -0.35), (-0.05, -0.7)), pen.polygon(c, (0.52, -1), (0.5, -0.35), (0.05, -0.7))
    pen.oval(c, 0, -0.32, 0.52, 0.45)
    pen.oval(DARK, -0.2, -0.38, 0.09, 0.13), pen.oval(DARK, 0.2, -0.38, 0.09, 0.13)
    pen.polygon(SKIN, (-0.12, -0.16), (0.12, -0.16), (0, -0.02))


def draw_horse(pen, c):
    mane = shade(c, 0.55)
    pen.polygon(mane, (-0.75, -0.15), (-1.05, 0.1), (-1.02, 0.65), (-0.85, 0.6), (-0.8, 0.2), (-0.6, 0.1))
    for x in (-0.7, -0.42, 0.25, 0.5):
        pen.box(c if x in (-0.7, 0.5) else mane, x, 0.25, x + 0.17, 1)
    pen.oval(c, -0.02, 0.1, 0.76, 0.34)
    pen.polygon(c, (0.25, 0.05), (0.5, -0.8), (0.78, -0.85), (0.72, 0.15))
    pen.polygon(mane, (0.22, 0.0), (0.42, -0.85), (0.55, -0.88), (0.4, -0.05))
    pen.polygon(c, (0.5, -0.8), (0.62, -1), (0.72, -0.85), (1.12, -0.5), (1.05, -0.28), (0.85, -0.32), (0.6, -0.42))
    pen.oval(DARK, 0.76, -0.62, 0.07)


def draw_dog(pen, c):
    ear = shade(c, 0.55)
    pen.polygon(c, (-0.7, 0.1), (-1, -0.5), (-0.85, -0.55), (-0.5, -0.05))
    for x in (-0.72, 0.3):
        pen.box(ear, x + 0.24, 0.4, x + 0.42, 0.9), pen.box(c, x, 0.4, x + 0.2, 0.95)
    pen.polygon(c, (-0.78, -0.08), (0.6, -0.12), (0.6, 0.55), (-0.78, 0.55))
    pen.oval(c, 0.55, -0.38, 0.44, 0.4)
    pen.oval(c, 0.9, -0.24, 0.28, 0.2)
    pen.oval(DARK, 1.1, -0.3, 0.1)
    pen.oval(ear, 0.3, -0.3, 0.17, 0.4)
    pen.oval(DARK, 0.66, -0.48, 0.08)


def draw_house(pen, c):
    pen.box(c, -0.72, -0.2, 0.72, 0.95)
    pen.polygon(shade(c, 0.55), (-1, -0.15), (0, -1), (1, -0.15))
    pen.box(WOOD, -0.5, 0.25, -0.1, 0.95)
    pen.box(LAMP, 0.12, 0.15, 0.52, 0.55)


def draw_tree(pen, c):
    pen.box(WOOD, -0.16, 0.2, 0.16, 1)
    for x, y, r in ((-0.4, 0, 0.42), (0.4, 0, 0.42), (0, -0.45, 0.52)):
        pen.oval(c, x, y, r)


def draw_sun(pen, c):
    for x, y in ring(8, 1):
        pen.polygon(c, (x, y), (-y * 0.28, x * 0.28), (y * 0.28, -x * 0.28))
    pen.oval(c, 0, 0, 0.62)
    pen.oval(shade(c, 0.82), 0, 0, 0.46)


def draw_moon(pen, c):
    turn = math.radians(50)
    outer = [(0.15 + 0.95 * math.cos(a), 0.95 * math.sin(a)) for a in np.linspace(turn, 2 * math.pi - turn, 24)]
    inner = [(0.52 + 0.78 * math.cos(a), 0.73 * math.sin(a)) for a in np.linspace(2 * math.pi - turn * 1.83, turn * 1.83, 24)]
    pen.polygon(c, *outer, *inner)


def draw_star(pen, c):
    pen.polygon(c, *[p for pair in zip(ring(5, 1), ring(5, 0.42, 0.5)) for p in pair])


def draw_heart(pen, c):
    pen.oval(c, -0.44, -0.35, 0.47), pen.oval(c, 0.44, -0.35, 0.47)
    pen.polygon(c, (-0.86, -0.12), (0.86, -0.12), (0, 0.95))
    pen.box(c, -0.4, -0.4, 0.4, 0)


def draw_circle(pen, c):
    pen.oval(c, 0, 0, 0.9)


def draw_square(pen, c):
    pen.box(c, -0.82, -0.82, 0.82, 0.82)


def draw_triangle(pen, c):
    pen.polygon(c, (0, -0.95), (1, 0.8), (-1, 0.8))


def draw_place(canvas, place, rng):
    edge = SIZE * ZOOM
    horizon = 0.65 * edge
    sky, ground = dict(space=((18, 16, 44), None), grass=((165, 218, 245), (130, 205, 95)), sea=((205, 232, 245), (35, 150, 190)), night=((38, 42, 98), (48, 70, 66)),
                       desert=((250, 205, 165), (226, 165, 95))).get(place, ((188, 196, 206), None))
    canvas.rectangle([0, 0, edge, edge], fill=sky)
    if ground:
        canvas.rectangle([0, horizon, edge, edge], fill=ground)
    if place in ("space", "night"):
        for _ in range(9 if place == "space" else 6):
            x, y, r = rng.uniform(0, edge), rng.uniform(0, edge if place == "space" else horizon - 12), rng.uniform(2.5, 4)
            canvas.ellipse([x - r, y - r, x + r, y + r], fill=(235, 235, 250))


def draw(scene, size=SIZE):
    """The scene as `size` x `size` pixels, uint8 (size, size, 3)."""
    picture = Image.new("RGB", (SIZE * ZOOM, SIZE * ZOOM))
    canvas = ImageDraw.Draw(picture)
    draw_place(canvas, scene.place, random.Random(scene.seed % 4))
    for thing in scene.things:
        pen, colour = Pen(canvas, thing.x, thing.y, thing.r), COLOURS[thing.colour]
        shape = globals()[f"draw_{thing.name}"]
        if thing.name in RIDERS:
            shape(pen, colour, seated=scene.relation == "riding")
        else:
            shape(pen, colour)
    if scene.relation == "riding":
        # The near leg hangs over the mount's side.
        rider = scene.things[0]
        pen = Pen(canvas, rider.x, rider.y, rider.r)
        pen.polygon(shade(COLOURS[rider.colour], 0.88), (-0.18, 0.38), (0.2, 0.38), (0.42, 1.15), (0.12, 1.2))
        pen.box(DARK, 0.12, 1.1, 0.52, 1.28)
    return np.asarray(picture.reduce(SIZE * ZOOM // size))


def sheet(pictures, columns, gap=2):
    """uint8 pictures of one size side by side, row after row."""
    h, w, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        page[y : y + h, x : x + w] = picture
    return Image.fromarray(page)


if __name__ == "__main__":
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(64)]
    for scene in scenes:
        print(caption(scene, rng))
    sheet([draw(s) for s in scenes], 8).save(sys.argv[1])
