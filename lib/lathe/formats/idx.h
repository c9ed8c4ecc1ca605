#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lathe::formats {

/// An IDX file of unsigned bytes (LeCun's MNIST format), plain or gzip: a header with the number of dimensions and
/// their sizes, then the elements, the last dimension fastest.
struct IdxFile {
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

/// Reads a file that must have `num_dimensions` dimensions. Throws Error{Data} when it is missing, has another magic
/// number or element type, is empty, cut, longer than its header says or damaged, or claims more than 16 GiB or more
/// than a file of its size can hold; memory is taken only after that check.
IdxFile read_idx(const std::string& file, size_t num_dimensions);

/// The labels' file of an images' file: `images-idx3` in its name becomes `labels-idx1`.
/// Throws Error{Data} when the name has no such part.
std::string idx_labels_path(const std::string& images_path);

}  // namespace lathe::formats
