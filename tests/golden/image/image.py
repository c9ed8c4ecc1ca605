"""Makes the golden pictures beside it, with Pillow 13.0.0 (github.com/python-pillow/Pillow).

    python image.py

source.png, grey.png   made pictures: ramps, edges and a chequer board, so that every error of a filter shows
KIND.png               source.png in another kind of PNG; KIND.rgb.png is what Pillow's convert("RGB") gives
photo.jpg, grey.jpg    source.png as JPEG (4:2:0; grey), NAME.decoded.png what Pillow decodes
FILTER-HEIGHTxWIDTH.png   source.png resized by Pillow
"""
import pathlib

from PIL import Image

HERE = pathlib.Path(__file__).parent
SIZES = [(24, 20), (7, 5), (90, 31), (37, 90), (1, 1), (53, 41)]  # height, width


def made(width, height):
    image = Image.new("RGB", (width, height))
    image.putdata([((7 * x + 3 * y) % 256, 255 * ((x // 5 + y // 3) % 2), (x * y + 40 * (x % 2)) % 256) for y in range(height) for x in range(width)])
    return image


source = made(53, 37)
source.save(HERE / "source.png")
grey = source.convert("L")
grey.save(HERE / "grey.png")
with_alpha = source.convert("RGBA")
with_alpha.putalpha(grey)
kinds = {"palette": source.quantize(17), "alpha": with_alpha, "grey_alpha": with_alpha.convert("LA"), "bits": grey.convert("1")}
for name, image in kinds.items():
    image.save(HERE / f"{name}.png")
    image.convert("RGB").save(HERE / f"{name}.rgb.png")
source.save(HERE / "photo.jpg", quality=80)
grey.save(HERE / "grey.jpg", quality=80)
for name in ("photo", "grey"):
    Image.open(HERE / f"{name}.jpg").save(HERE / f"{name}.decoded.png")
for name, resample in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
    for height, width in SIZES:
        source.resize((width, height), resample).save(HERE / f"{name}-{height}x{width}.png")
