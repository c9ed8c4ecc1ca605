"""Own CPU time and memory of a Mixer block and of attention blocks against the length of the sequence, at fixed d_s:
python mixer_length.py BENCH [--out lengths.svg]

BENCH is build/dev/bin/lathe_mixer_length. Prints a table and the exponents fitted to the longer half (time ~ length^e), and draws both
on logarithmic axes. One thread; needs no package. On an EPYC of Zen 4, from 512 to 2048: the Mixer block's time grows as length^0.80, that of
attention as length^1.32, that of attention with stored scores as length^1.35 and its memory as length^1.50 (the other two: linear).
"""
import argparse
import json
import math
import os
import subprocess

KINDS = {"mixer": "#1f6fd1", "attention": "#d1580a", "attention_stored": "#128262"}
LENGTHS = [64, 128, 256, 512, 1024, 2048]


def exponent(points):
    """Of y = a x^e, by least squares of the logarithms over the longer half."""
    points = [(math.log(x), math.log(y)) for x, y in points[len(points) // 2:]]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def panel(title, unit, curves, left):
    """One chart of 380 x 300 at `left`, both axes logarithmic."""
    xs = [math.log(x) for curve in curves.values() for x, _ in curve]
    ys = [math.log(y) for curve in curves.values() for _, y in curve]
    place_x = lambda x: left + 60 + 300 * (math.log(x) - min(xs)) / (max(xs) - min(xs))
    place_y = lambda y: 270 - 220 * (math.log(y) - min(ys)) / (max(ys) - min(ys))
    out = [f'<text x="{left + 60}" y="28" font-weight="bold">{title}</text>', f'<path d="M{left + 60} 50V270H{left + 360}" stroke="#5b6472"/>']
    for x in sorted({x for curve in curves.values() for x, _ in curve}):
        out.append(f'<text x="{place_x(x):.0f}" y="288" text-anchor="middle">{x}</text>')
    for power in range(math.ceil(min(ys) / math.log(10)), math.floor(max(ys) / math.log(10)) + 1):
        out.append(f'<text x="{left + 54}" y="{place_y(10.0 ** power) + 4:.0f}" text-anchor="end">{10.0 ** power:g} {unit}</text>')
    for name, curve in curves.items():
        points = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in curve)
        out.append(f'<polyline points="{points}" stroke="{KINDS[name]}" stroke-width="2"/>')
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--out")
    args = parser.parse_args()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    times, bytes_kept = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
    print(f"{'length':>8}" + "".join(f"{kind + ' ms':>22}{'MiB':>10}" for kind in KINDS))
    for length in args.lengths:
        line = f"{length:8}"
        for kind in KINDS:
            result = json.loads(subprocess.run([args.bench, kind, str(length)], capture_output=True, text=True, env=env, check=True).stdout)
            times[kind].append((length, result["seconds"] * 1e3))
            bytes_kept[kind].append((length, result["kept_bytes"] / 2**20))
            line += f"{times[kind][-1][1]:22.2f}{bytes_kept[kind][-1][1]:10.1f}"
        print(line, flush=True)
    for kind in KINDS:
        print(f"{kind}: time ~ length^{exponent(times[kind]):.2f}, memory ~ length^{exponent(bytes_kept[kind]):.2f}")
    if args.out:
        legend = [f'<text x="{70 + 260 * i}" y="312" fill="{colour}">{kind}</text>' for i, (kind, colour) in enumerate(KINDS.items())]
        body = panel("Forward and backward", "ms", times, 0) + panel("Kept between them", "MiB", bytes_kept, 390) + legend
        with open(args.out, "w", encoding="utf-8") as file:
            file.write('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 324" font-family="sans-serif" font-size="12" fill="none">'
                       '<rect width="790" height="324" fill="#fff"/><g fill="#1c2330" stroke="none">' + "".join(item for item in body if item.startswith("<text")) + "</g>"
                       + "".join(item for item in body if not item.startswith("<text")) + "</svg>\n")


if __name__ == "__main__":
    main()
