#!/usr/bin/env python3
"""The pictures of IDX files inverted and turned by a quarter, their labels as they are: a task that a model of the originals has never seen.

    python3 shift_pictures.py --raw FOLDER --out FOLDER
"""
import argparse
import gzip
import os
import shutil
import struct

INVERTED = bytes(range(255, -1, -1))


def shift(data):
    """An IDX file of square 8-bit pictures; each is turned clockwise."""
    magic, count, height, width = struct.unpack(">4I", data[:16])
    if magic != 0x803 or height != width or len(data) != 16 + count * height * width:
        raise SystemExit("shift_pictures: expected an IDX file of square pictures")
    inverted = data[16:].translate(INVERTED)
    size = height * width
    out = [data[:16]]
    for first in range(0, len(inverted), size):
        picture = inverted[first:first + size]
        out += [picture[column::width][::-1] for column in range(width)]
    return b"".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    for name in sorted(os.listdir(arguments.raw)):
        source, target = os.path.join(arguments.raw, name), os.path.join(arguments.out, name)
        if "labels-idx1" in name:
            shutil.copyfile(source, target)
        elif "images-idx3" in name:
            with gzip.open(source) as file:
                shifted = gzip.compress(shift(file.read()), compresslevel=1, mtime=0)
            with open(target, "wb") as file:
                file.write(shifted)


if __name__ == "__main__":
    main()
