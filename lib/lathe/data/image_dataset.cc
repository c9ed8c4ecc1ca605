#include "lathe/data/image_dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "lathe/base/files.h"
#include "lathe/base/text.h"
#include "lathe/data/lines.h"
#include "lathe/image/preprocess.h"

namespace lathe::data {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxListBytes = uint64_t{1} << 30;

bool has_extension(const fs::path& path, std::initializer_list<std::string_view> extensions) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
}

// What a directory holds, by name, without hidden files.
std::vector<fs::path> entries_of(const fs::path& directory) {
  std::vector<fs::path> entries;
  std::error_code problem;
  for (fs::directory_iterator it(directory, problem), end; !problem && it != end; it.increment(problem)) {
    if (!it->path().filename().string().starts_with('.')) entries.push_back(it->path());
  }
  if (problem) throw data_error(directory.string(), "cannot be read: " + problem.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

ImageFormat format_of(const std::string& path, ImageFormat wanted) {
  if (wanted != ImageFormat::Auto) return wanted;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return ImageFormat::Folder;
  return has_extension(path, {".csv", ".jsonl"}) ? ImageFormat::List : ImageFormat::Idx;
}

// Calls `work` with 0 .. count - 1 on all cores. What it throws ends all and is thrown again.
void for_each_in_parallel(size_t count, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  std::exception_ptr thrown;
  std::mutex mutex;
  const auto run = [&] {
    try {
      for (size_t i = next++; i < count; i = next++) work(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      thrown = std::current_exception();
      next = count;
    }
  };
  std::vector<std::jthread> threads;
  const size_t others = std::min<size_t>(std::max(1U, std::thread::hardware_concurrency()), 1 + count / 16) - 1;
  for (size_t i = 0; i < others; ++i) threads.emplace_back(run);
  run();
  threads.clear();
  if (thrown) std::rethrow_exception(thrown);
}

uint64_t hash_of(const image::Picture& picture) {
  const auto seed = static_cast<uint64_t>(picture.width << 2 | picture.channels);
  return XXH3_64bits_withSeed(picture.bytes.data(), picture.bytes.size(), seed);
}

}  // namespace

// Reads what the paths name into a dataset, step by step.
class ImageDataset::Opener {
 public:
  Opener(ImageDataset& dataset, const ImageDatasetOptions& options) : dataset_(dataset), options_(options) {}

  void read(const std::string& path) {
    const size_t first = dataset_.samples_.size();
    switch (format_of(path, options_.format)) {
      case ImageFormat::Folder:
        read_folder(path);
        break;
      case ImageFormat::List:
        read_list(path);
        break;
      default:
        read_idx(path);
    }
    mistakes_.throw_if_any();
    if (dataset_.samples_.size() == first) throw data_error(path, "holds no samples");
  }

  void finish() {
    name_labels();
    mistakes_.throw_if_any();
    check_pictures();
    mistakes_.throw_if_any();
  }

 private:
  void add_file(const fs::path& file, const std::string& label, int line = 0) {
    Sample sample;
    sample.file = file.string();
    sample.label_name = label;
    sample.line = line;
    dataset_.samples_.push_back(std::move(sample));
  }

  void read_folder(const std::string& path) {
    std::error_code ignored;
    if (!fs::is_directory(path, ignored))
      throw data_error(path, Diagnostic::expected("a directory with one directory per class", "none"));
    for (const fs::path& folder : entries_of(path)) {
      if (!fs::is_directory(folder, ignored)) {
        mistakes_.add({folder.string(), 0, 0, "", Diagnostic::expected("a directory per class", "a file"), ""});
        continue;
      }
      const std::vector<fs::path> files = entries_of(folder);
      if (files.empty()) mistakes_.add({folder.string(), 0, 0, "", "a class without pictures", "remove it or fill it"});
      for (const fs::path& file : files) {
        if (has_extension(file, {".png", ".jpg", ".jpeg"})) {
          add_file(file, folder.filename().string());
        } else {
          mistakes_.add({file.string(), 0, 0, "", "is neither PNG nor JPEG by its name", "move it away"});
        }
      }
    }
  }

  void read_list(const std::string& path) {
    const fs::path base = fs::path(path).parent_path();
    if (!has_extension(path, {".csv"})) {
      for_each_json_line(path, mistakes_, [&](const JsonObject& line, int number) {
        const std::string file = line.string(options_.path_field);
        add_file(base / file, read_label(line, options_.label_field), number);
      });
      return;
    }
    const std::vector<CsvRow> rows = parse_csv(read_file(path, kMaxListBytes), path);
    if (rows.empty()) return;
    const auto column = [&](const std::string& field) {
      const auto& header = rows.front().fields;
      const auto found = std::find(header.begin(), header.end(), field);
      if (found == header.end())
        throw data_error_at(path, rows.front().line, "has no column " + quote(field), suggest(field, header));
      return static_cast<size_t>(found - header.begin());
    };
    const size_t path_column = column(options_.path_field), label_column = column(options_.label_field);
    for (size_t i = 1; i < rows.size(); ++i) {
      const auto& [line, fields] = rows[i];
      if (fields.size() == rows.front().fields.size()) {
        add_file(base / fields[path_column], fields[label_column], line);
      } else {
        mistakes_.add({path, line, 0, "",
                       Diagnostic::expected(std::to_string(rows.front().fields.size()) + " fields",
                                            std::to_string(fields.size())),
                       ""});
      }
    }
  }

  void read_idx(const std::string& path) {
    const std::string labels_path = formats::idx_labels_path(path);
    auto source = std::make_shared<IdxImages>(IdxImages{path, formats::read_idx(path, 3)});
    const formats::IdxFile labels = formats::read_idx(labels_path, 1);
    const std::vector<int64_t>& shape = source->images.shape;
    if (shape[1] > image::kMaxPixels / shape[2]) throw data_error(path, "its images have too many pixels");
    if (labels.shape[0] != shape[0]) {
      throw data_error(labels_path, Diagnostic::expected(std::to_string(shape[0]) + " labels, one per image of " + path,
                                                         std::to_string(labels.shape[0])));
    }
    const auto num_labels = static_cast<int64_t>(options_.labels_may_differ ? 0 : options_.labels.size());
    for (int64_t i = 0; i < shape[0]; ++i) {
      Sample sample;
      sample.source = dataset_.sources_.size();
      sample.index = i;
      sample.label = labels.bytes[static_cast<size_t>(i)];
      largest_idx_label_ = std::max(largest_idx_label_, sample.label);
      if (num_labels > 0 && sample.label >= num_labels) {
        mistakes_.add({labels_path, 0, 0, "",
                       "label " + std::to_string(i) + ": " +
                           Diagnostic::expected("0 to " + std::to_string(num_labels - 1), std::to_string(sample.label)),
                       ""});
      }
      dataset_.samples_.push_back(std::move(sample));
    }
    dataset_.sources_.push_back(std::move(source));
  }

  void name_labels() {
    std::vector<std::string>& names = dataset_.label_names_;
    names = options_.labels;
    std::set<std::string> distinct;
    for (const Sample& sample : dataset_.samples_) {
      if (!sample.file.empty()) distinct.insert(sample.label_name);
    }
    if (options_.labels_may_differ && !contains_all(names, distinct)) names.clear();
    if (names.empty()) {
      for (int64_t label = 0; label <= largest_idx_label_; ++label) names.push_back(std::to_string(label));
      if (!distinct.empty() && !names.empty())
        throw data_error(dataset_.sources_.front()->path, "idx files and other pictures need data.labels together");
      names.insert(names.end(), distinct.begin(), distinct.end());
    }
    std::map<std::string, int64_t> index;
    for (size_t i = 0; i < names.size(); ++i) index[names[i]] = static_cast<int64_t>(i);
    for (Sample& sample : dataset_.samples_) {
      if (sample.file.empty()) continue;
      const auto found = index.find(sample.label_name);
      if (found == index.end()) {
        mistakes_.add({sample.file, 0, 0, options_.label_field, "unknown label " + quote(sample.label_name),
                       suggest(sample.label_name, names)});
      } else {
        sample.label = found->second;
      }
      sample.label_name = {};
    }
  }

  bool contains_all(const std::vector<std::string>& names, const std::set<std::string>& distinct) const {
    const std::set<std::string> known(names.begin(), names.end());
    return largest_idx_label_ < static_cast<int64_t>(names.size()) &&
           std::includes(known.begin(), known.end(), distinct.begin(), distinct.end());
  }

  void check_pictures() {
    std::map<size_t, Diagnostic> bad;  // by sample, so that the order does not depend on the threads
    std::mutex mutex;
    for_each_in_parallel(dataset_.samples_.size(), [&](size_t i) {
      Sample& sample = dataset_.samples_[i];
      try {
        image::Picture picture = dataset_.picture(sample);
        sample.hash = hash_of(picture);
        if (options_.channels > 0) image::to_channels(std::move(picture), options_.channels, dataset_.place(sample));
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::Data) throw;
        const std::lock_guard lock(mutex);
        bad.emplace(i, error.diagnostics().front());
      }
    });
    for (auto& [i, diagnostic] : bad) {
      if (const int line = dataset_.samples_[i].line; line > 0)
        diagnostic.hint += (diagnostic.hint.empty() ? "line " : "; line ") + std::to_string(line) + " of the list";
      mistakes_.add(std::move(diagnostic));
    }
  }

  ImageDataset& dataset_;
  const ImageDatasetOptions& options_;
  Mistakes mistakes_;
  int64_t largest_idx_label_ = -1;
};

ImageDataset ImageDataset::open(const std::vector<std::string>& paths, const ImageDatasetOptions& options) {
  ImageDataset dataset;
  Opener opener(dataset, options);
  for (const std::string& path : paths) opener.read(path);
  opener.finish();
  return dataset;
}

image::Picture ImageDataset::picture(int64_t index) const { return picture(at(index)); }

image::Picture ImageDataset::picture(const Sample& sample) const {
  if (!sample.file.empty()) return image::read_picture(sample.file);
  const formats::IdxFile& images = sources_[sample.source]->images;
  image::Picture picture(images.shape[1], images.shape[2], 1);
  const auto first = images.bytes.begin() + static_cast<ptrdiff_t>(picture.bytes.size()) * sample.index;
  std::copy(first, first + static_cast<ptrdiff_t>(picture.bytes.size()), picture.bytes.begin());
  return picture;
}

std::string ImageDataset::place(const Sample& sample) const {
  return sample.file.empty() ? sources_[sample.source]->path + ": image " + std::to_string(sample.index) : sample.file;
}

uint64_t ImageDataset::fingerprint() const {
  uint64_t hash = 0;
  for (const Sample& sample : samples_) {
    const uint64_t words[] = {sample.hash, static_cast<uint64_t>(sample.label)};
    hash = XXH3_64bits_withSeed(words, sizeof(words), hash);
  }
  return hash;
}

ImageDataset ImageDataset::split_off(double fraction) {
  ImageDataset held_out;
  held_out.sources_ = sources_;
  held_out.label_names_ = label_names_;
  const auto border = std::stable_partition(samples_.begin(), samples_.end(), [fraction](const Sample& sample) {
    return static_cast<double>(sample.hash >> 11) * 0x1.0p-53 >= fraction;
  });
  held_out.samples_.assign(std::make_move_iterator(border), std::make_move_iterator(samples_.end()));
  samples_.erase(border, samples_.end());
  return held_out;
}

}  // namespace lathe::data
