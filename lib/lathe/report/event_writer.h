#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe::report {

/// A TensorBoard event file: `events.out.tfevents.SECONDS.HOST.PID.lathe` in a directory, which is created.
///
/// The file is a TFRecord of protobuf messages Event{wall_time, step, summary{value{tag, simple_value}}}, after a first
/// Event{wall_time, file_version "brain.Event:2"}. With a `first_step` a second one says that a run starts again there:
/// readers drop what older files say of that step and later ones. Each call of add_scalars appends one record that
/// readers see at once. Throws Error{Resource} when the disk is full, Error{Run} for other failures to write.
class EventWriter {
 public:
  explicit EventWriter(const std::filesystem::path& directory, int64_t first_step = 0);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// One event with a value per tag, stored as float32. `wall_time` is in seconds since 1970.
  void add_scalars(int64_t step, double wall_time, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void append_record(std::string_view event);

  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// The CRC-32C (Castagnoli) of `bytes`, masked as TFRecord files store it: rotated right by 15 bits, plus 0xA282EAD8.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace lathe::report
