#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lathe/formats/idx.h"
#include "lathe/image/picture.h"

namespace lathe::data {

enum class ImageFormat {
  Auto,    ///< by what the path is: a directory, .csv or .jsonl, anything else is idx
  Idx,     ///< an images-idx3 file; labels-idx1 lies beside it
  Folder,  ///< a directory with one directory of pictures per class
  List,    ///< CSV (with a header) or JSONL: a picture's path, relative to the list, and its label
};

struct ImageDatasetOptions {
  ImageFormat format = ImageFormat::Auto;
  std::string path_field = "path";
  std::string label_field = "label";
  /// Names in order. Empty: those that occur, sorted; of idx files "0" to the largest label.
  std::vector<std::string> labels{};
  /// `labels` are only a proposal: where another one occurs, they are those that occur.
  bool labels_may_differ = false;
  /// Of the model that will see the pictures: colour is refused for 1. 0: any.
  int64_t channels = 0;
};

/// Labelled pictures, all of them decoded and checked when opened, on all cores; decoded again when asked for.
class ImageDataset {
 public:
  /// Throws Error{Data}, the first ten mistakes at once: a picture that is missing, damaged or too large, an unknown
  /// label or one out of range, a class without pictures, a file that is no picture, a list without the fields.
  static ImageDataset open(const std::vector<std::string>& paths, const ImageDatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  /// Index into label_names().
  int64_t label(int64_t index) const { return at(index).label; }
  const std::vector<std::string>& label_names() const { return label_names_; }
  /// Throws Error{Data} when the file has changed and is no picture any more.
  image::Picture picture(int64_t index) const;
  /// Where the sample comes from, for people: its file, or "FILE: image 17".
  std::string place(int64_t index) const { return place(at(index)); }
  /// A hash of every picture and label in order: a resumed run compares it.
  uint64_t fingerprint() const;
  /// Moves the samples whose content hash (of the pixels) falls into the share `fraction` to a second dataset: twins go
  /// together.
  ImageDataset split_off(double fraction);

 private:
  struct Sample {
    std::string file;        ///< of a picture; empty: of an idx file
    std::string label_name;  ///< while reading
    size_t source = 0;       ///< the idx file
    int64_t index = 0;       ///< the image in it
    int64_t label = -1;
    uint64_t hash = 0;  ///< of the pixels
    int line = 0;       ///< of a list
  };
  struct IdxImages {
    std::string path;
    formats::IdxFile images;
  };
  class Opener;

  const Sample& at(int64_t index) const { return samples_[static_cast<size_t>(index)]; }
  image::Picture picture(const Sample& sample) const;
  std::string place(const Sample& sample) const;

  std::vector<std::shared_ptr<const IdxImages>> sources_;
  std::vector<Sample> samples_;
  std::vector<std::string> label_names_;
};

}  // namespace lathe::data
