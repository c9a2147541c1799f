"""The tokenizer and the text tower of the demo: CLIP's (Radford et al. 2021) with the vocabulary of the world's captions.

The tower is trained by itself, to tell from a caption what is in its scene. In CLIP that knowledge comes from pictures.
"""
import collections, json, pathlib, random, string

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import world

LENGTH, WIDTH = 24, 128
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters():
    """Byte-level BPE writes each byte as a letter: itself where it can be seen, else one beyond 255."""
    seen = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    hidden = [b for b in range(256) if b not in seen]
    return [chr(b) for b in seen] + [chr(256 + i) for i in range(len(hidden))]


def merge(word, pair):
    out = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def make_tokenizer(folder):
    """Writes vocab.json, merges.txt and the config, in which every word of the captions is one token.

    The pairs that stand in the most words are merged first, until each word is whole. Strange words fall apart into pieces of these.
    """
    spelled, merges = [[*word[:-1], word[-1] + "</w>"] for word in world.vocabulary()], []
    while any(len(word) > 1 for word in spelled):
        pairs = collections.Counter(pair for word in spelled for pair in zip(word, word[1:]))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [merge(word, best) for word in spelled]
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, bos_token=START, eos_token=END, unk_token=END, pad_token=END)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for word in world.vocabulary():
        assert len(tokenizer(word).input_ids) == 3, f"{word} is not one token"
    return tokenizer


def encode(tokenizer, texts, kind="pt"):
    """Token ids, (n, 24), as a tensor or (`np`) an array."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors=kind).input_ids


def spoken(scene, rng):
    """A caption as people type it: now and then with words in it that the world does not know."""
    text = world.caption(scene, rng)
    if rng.random() < 0.1:
        stranger = "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(2, 7)))
        text = rng.choice([f"{stranger} {text}", f"{stranger}, {text}", f"{text} {stranger}", f"{text}, {stranger}"])
    return text


def eight(tokenizer, numbered):
    """Token ids of eight captions of a scene, (8, 24) in 16 bits; its number is the seed."""
    number, scene = numbered
    rng = random.Random(number)
    return encode(tokenizer, [spoken(scene, rng) for _ in range(8)], "np").astype("int16")


def slots(scene):
    """What a caption tells, as numbers: first thing and colour, second thing and colour, relation, place, count."""
    first, second = scene.things[0], scene.things[1] if scene.relation else None
    index = lambda values, value: list(values).index(value) + 1 if value else 0
    return [index(world.THINGS, first.name), index(world.COLOURS, first.colour), index(world.THINGS, second and second.name), index(world.COLOURS, second and second.colour),
            index(world.RELATIONS, scene.relation), index(world.PLACES, scene.place), 1 if scene.relation else len(scene.things)]


SLOTS = [len(world.THINGS) + 1, len(world.COLOURS) + 1] * 2 + [len(world.RELATIONS) + 1, len(world.PLACES) + 1, 4]


class Reader(nn.Module):
    """The tower, and a linear guess at each slot from its state at the caption's end."""

    def __init__(self, tokenizer):
        super().__init__()
        torch.manual_seed(2)
        ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        self.tower = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
                                                  projection_dim=WIDTH, max_position_embeddings=LENGTH, hidden_act="quick_gelu", **ids))
        self.heads = nn.Linear(WIDTH, sum(SLOTS))
        self.end = tokenizer.eos_token_id

    def forward(self, ids):
        states = self.tower(ids).last_hidden_state
        last = (ids == self.end).int().argmax(1)
        return self.heads(states[torch.arange(len(ids)), last]).split(SLOTS, 1)


def reading_loss(tokenizer, scenes, batch=64):
    table = torch.tensor([slots(scene) for scene in scenes])

    def loss_of(reader, g):
        pick = torch.randint(len(scenes), (batch,), generator=g)
        rng = random.Random(pick[0].item())
        ids = encode(tokenizer, [spoken(scenes[i], rng) for i in pick])
        return sum(F.cross_entropy(guess, table[pick, k]) for k, guess in enumerate(reader(ids)))

    return loss_of


def right(reader, tokenizer, scenes):
    """The share of captions of which every slot is read right."""
    rng = random.Random(0)
    with torch.no_grad():
        guesses = reader(encode(tokenizer, [world.caption(scene, rng) for scene in scenes]))
    table = torch.tensor([slots(scene) for scene in scenes])
    return torch.stack([guess.argmax(1) == table[:, k] for k, guess in enumerate(guesses)]).all(0).float().mean().item()
