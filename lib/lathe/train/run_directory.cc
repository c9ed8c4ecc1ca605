#include "lathe/train/run_directory.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "lathe/base/error.h"

namespace lathe::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kLock = "lock";
constexpr const char* kRecipeMark = "# Resolved by lathe train; --resume compares with it.";

std::string checksum(const fs::path& file) {
  const MappedFile mapped(file);
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(mapped.bytes().data(), mapped.bytes().size())));
  return text.data();
}

std::vector<fs::path> files_below(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file() && entry.path().filename() != kManifest)
      files.push_back(entry.path().lexically_relative(directory));
  }
  std::sort(files.begin(), files.end());
  return files;
}

void write_manifest(const fs::path& directory, int64_t step) {
  Json files = Json::object();
  for (const fs::path& file : files_below(directory)) {
    files[file.string()] = {{"bytes", fs::file_size(directory / file)}, {"xxh3", checksum(directory / file)}};
  }
  const Json manifest = {{"format", 1}, {"step", step}, {"files", std::move(files)}};
  write_file_atomically(directory / kManifest, manifest.dump(2) + "\n");
}

bool verifies(const fs::path& directory, int64_t step) {
  try {
    const std::string file = (directory / kManifest).string();
    const Json json = read_json_file(file, 16 << 20);
    const JsonObject manifest(json, file);
    if (manifest.integer("step", 0, INT64_MAX) != step) return false;  // a copy under another name
    const JsonObject listed = manifest.object("files");
    if (files_below(directory).size() != listed.json().size()) return false;
    for (const auto& [name, unused] : listed.json().items()) {
      const JsonObject entry = listed.object(name);
      if (static_cast<int64_t>(fs::file_size(directory / name)) != entry.integer("bytes", 0, INT64_MAX)) return false;
      if (checksum(directory / name) != entry.string("xxh3")) return false;
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// The steps of checkpoints/step-N, newest first.
std::vector<CheckpointPlace> list_checkpoints(const fs::path& directory) {
  std::vector<CheckpointPlace> found;
  if (!fs::exists(directory)) return found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("step-")) continue;
    int64_t step = 0;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (error == std::errc() && end == name.data() + name.size()) found.push_back({step, entry.path()});
  }
  std::sort(found.begin(), found.end(),
            [](const CheckpointPlace& a, const CheckpointPlace& b) { return a.step > b.step; });
  return found;
}

// Nothing, or only the lock of a run that ended before it began.
bool holds_nothing(const fs::path& directory) {
  return std::all_of(fs::directory_iterator(directory), fs::directory_iterator(),
                     [](const fs::directory_entry& entry) { return entry.path().filename() == kLock; });
}

void remove_leftovers(const fs::path& directory) {
  if (!fs::exists(directory)) return;
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().string().find(kTemporaryMark) != std::string::npos) leftovers.push_back(entry.path());
  }
  for (const fs::path& leftover : leftovers) remove_tree(leftover);
}

}  // namespace

RunDirectory::RunDirectory(const std::string& path, bool resume) : path_(path) {
  const auto refuse = [&](const std::string& problem, const std::string& hint) {
    throw Error(ErrorKind::Config, Diagnostic{path_.string(), 0, 0, "output.dir", problem, hint});
  };
  if (fs::exists(path_) && !fs::is_directory(path_))
    refuse("expected a directory, got a file", "choose another output.dir");
  const bool used = fs::exists(path_) && !holds_nothing(path_);
  if (!resume && used) refuse("is not empty", "--resume continues that run; another output.dir keeps it");
  if (resume && used && !recipe_text().value_or("").starts_with(kRecipeMark))
    refuse("is not empty and holds no run (no recipe.yaml that lathe train wrote)", "choose another output.dir");
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) refuse("cannot be created: " + error.message(), "");
  lock_ = std::make_unique<FileLock>(path_ / kLock);
  remove_leftovers(path_);
  remove_leftovers(path_ / "checkpoints");
  if (has("metrics.jsonl")) metrics_.bytes = fs::file_size(path_ / "metrics.jsonl");
}

void RunDirectory::write_recipe(const std::string& yaml) {
  write_file_atomically(path_ / "recipe.yaml", kRecipeMark + ("\n" + yaml));
}

std::optional<std::string> RunDirectory::recipe_text() const {
  if (!has("recipe.yaml")) return std::nullopt;
  return read_file(path_ / "recipe.yaml", 1 << 20);
}

std::string RunDirectory::append_metrics(const Json& line) {
  metrics_.waiting += line.dump() + "\n";
  return flush_metrics();
}

std::string RunDirectory::flush_metrics() {
  if (metrics_.waiting.empty()) return "";
  const fs::path file = path_ / "metrics.jsonl";
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor < 0) return std::strerror(errno);
  const ssize_t written = ::write(descriptor, metrics_.waiting.data(), metrics_.waiting.size());
  std::string problem;
  if (written == static_cast<ssize_t>(metrics_.waiting.size())) {
    metrics_.bytes += metrics_.waiting.size();
    metrics_.waiting.clear();
  } else {
    problem = std::strerror(written < 0 ? errno : ENOSPC);
    if (written > 0 && ::ftruncate(descriptor, static_cast<off_t>(metrics_.bytes)) != 0) problem = std::strerror(errno);
  }
  ::close(descriptor);
  return problem;
}

bool RunDirectory::rewind_metrics(const MetricsPosition& position) {
  const uint64_t size = has("metrics.jsonl") ? fs::file_size(path_ / "metrics.jsonl") : 0;
  uint64_t kept = std::min(size, position.bytes);
  if (size < position.bytes && size > 0) {  // never append to a torn line
    const std::string text = read_file(path_ / "metrics.jsonl", size);
    kept = text.rfind('\n') + 1;
  }
  if (size > kept) fs::resize_file(path_ / "metrics.jsonl", kept);
  metrics_ = {kept, position.waiting};
  return size >= position.bytes;
}

void RunDirectory::set_aside(const fs::path& checkpoint) {
  const fs::path target = checkpoint.parent_path() / ("damaged-" + checkpoint.filename().string());
  remove_tree(target);
  fs::rename(checkpoint, target);
}

void RunDirectory::sync_metrics() const {
  const int descriptor = ::open((path_ / "metrics.jsonl").c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

fs::path RunDirectory::checkpoint_path(int64_t step) const {
  return path_ / "checkpoints" / ("step-" + std::to_string(step));
}

void RunDirectory::publish_checkpoint(int64_t step, const std::function<void(const fs::path&)>& fill) {
  const fs::path target = checkpoint_path(step);
  make_directories(target.parent_path());
  if (fs::exists(target)) {
    if (verifies(target, step)) return;
    remove_tree(target);
  }
  publish_directory(target, [&](const fs::path& temporary) {
    fill(temporary);
    write_manifest(temporary, step);
  });
}

void RunDirectory::prune_checkpoints(int64_t keep, int64_t spared) {
  int64_t whole = 0;
  for (const CheckpointPlace& place : list_checkpoints(path_ / "checkpoints")) {
    if (!verifies(place.path, place.step)) continue;  // never counted, never removed: it may tell what went wrong
    if (++whole > keep && place.step != spared) remove_tree(place.path);
  }
}

bool RunDirectory::has_whole_checkpoint(int64_t step) const { return verifies(checkpoint_path(step), step); }

std::optional<CheckpointPlace> RunDirectory::newest_checkpoint(std::vector<std::string>& damaged) const {
  for (const CheckpointPlace& place : list_checkpoints(path_ / "checkpoints")) {
    if (verifies(place.path, place.step)) return place;
    damaged.push_back(place.path.string());
  }
  return std::nullopt;
}

void RunDirectory::publish(const std::string& name, const std::function<void(const fs::path&)>& fill) {
  publish_directory(path_ / name, fill);
}

void RunDirectory::unpublish(const std::string& name) {
  if (has(name)) remove_tree(path_ / name);
}

}  // namespace lathe::train
