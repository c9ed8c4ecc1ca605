"""Pictures and a Mixer small enough for tests of whole programs, written without any package, and a recipe that trains it in a second."""
import gzip
import json
import os
import struct
import zlib

from small_model import write

SIDE = 8
LABELS = ["above", "below", "left"]


def pixels(i):
    """Bright above, below or on the left."""
    bright = [lambda y, x: y < SIDE // 2, lambda y, x: y >= SIDE // 2, lambda y, x: x < SIDE // 2][i % 3]
    return bytes((150 if bright(y, x) else 20) + (i * 13 + y * 7 + x * 5) % 60 for y in range(SIDE) for x in range(SIDE))


def png(data, width=SIDE, channels=1):
    rows = b"".join(b"\0" + data[at:at + width * channels] for at in range(0, len(data), width * channels))
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    header = struct.pack(">IIBBBBB", width, len(data) // (width * channels), 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def idx(shape, data):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def write_small_images(directory, samples=30):
    """train-images-idx3-ubyte.gz with its labels, folder/LABEL/N.png, and recipe.yaml below `directory`; returns the recipe as a dict."""
    write(directory, "train-images-idx3-ubyte.gz", gzip.compress(idx([samples, SIDE, SIDE], b"".join(map(pixels, range(samples)))), mtime=0))
    write(directory, "train-labels-idx1-ubyte.gz", gzip.compress(idx([samples], bytes(i % 3 for i in range(samples))), mtime=0))
    for i in range(9):
        write(directory, f"folder/{LABELS[i % 3]}/{i}.png", png(pixels(i)))
    arch = {"model_type": "mixer", "image_size": SIDE, "num_channels": 1, "patch_size": 4, "num_blocks": 2, "hidden_size": 12}
    recipe = {"model": {"task": "image_classification", "init": "random", "arch": arch}, "adapter": {"type": "none"},
              "data": {"train": "train-images-idx3-ubyte.gz", "eval": "folder", "labels": LABELS},
              "optimizer": {"lr": 0.01}, "training": {"max_steps": 60, "batch_size": 6}, "output": {"dir": os.path.join(directory, "run")}}
    write(directory, "recipe.yaml", json.dumps(recipe))
    return recipe
