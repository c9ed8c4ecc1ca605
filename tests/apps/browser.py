"""A page in headless Chromium, and the pixels of a screenshot."""
import os
import struct
import subprocess
import zlib

LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"


def browse(chromium, folder, page, *options):
    """Opens a page; returns what it wrote to stdout and the messages of its console."""
    done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
                           "--user-data-dir=" + os.path.join(folder, "profile"), "--enable-logging=stderr", "--virtual-time-budget=3000", *options,
                           "file://" + page], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(done.stderr[-2000:])
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def pixels(path):
    """The rows of RGB pixels of an 8-bit PNG."""
    with open(path, "rb") as file:
        data = file.read()
    width, height, _, kind = struct.unpack(">IIBB", data[16:26])
    depth = {2: 3, 6: 4}[kind]
    at, packed = 8, b""
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at:at + 8])
        if name == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw, stride = zlib.decompress(packed), width * depth
    above, out = bytearray(stride), []
    for row in range(height):
        start = row * (stride + 1)
        line, mode = bytearray(raw[start + 1:start + 1 + stride]), raw[start]
        for i in range(stride):
            left, up, corner = (line[i - depth] if i >= depth else 0), above[i], (above[i - depth] if i >= depth else 0)
            guess = left + up - corner
            paeth = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
            line[i] = (line[i] + (0, left, up, (left + up) // 2, paeth)[mode]) & 255
        out.append([tuple(line[i:i + 3]) for i in range(0, stride, depth)])
        above = line
    return out
