#pragma once

#include "lathe/image/picture.h"

namespace lathe::image {

enum class Filter { Bilinear, Bicubic };

/// A part of a picture.
struct Window {
  int64_t top, left, height, width;
};

/// The picture at another size, antialiased: each output sample is the weighted mean of the input samples under the
/// filter, stretched by the scale when that shrinks, first along rows, then along columns, each rounded to 8 bits.
/// Equals Pillow's `Image.resize` with BILINEAR or BICUBIC (a = -0.5) bit for bit.
/// Requires height, width >= 1.
Picture resize(const Picture& picture, int64_t height, int64_t width, Filter filter);
/// A window of resize(picture, height, width, filter), at the cost of the window.
Picture resize(const Picture& picture, int64_t height, int64_t width, Filter filter, const Window& window);

/// A window of a picture. Requires it to lie inside.
Picture crop(const Picture& picture, const Window& window);

/// Mirrors left and right.
void flip(Picture& picture);

}  // namespace lathe::image
