#include "lathe/report/event_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <type_traits>

#include "lathe/base/error.h"

namespace lathe::report {
namespace {

// Protobuf keys: (field number << 3) | wire type; 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
constexpr char kEventWallTime = 1 << 3 | 1;
constexpr char kEventStep = 2 << 3 | 0;
constexpr char kEventFileVersion = 3 << 3 | 2;
constexpr char kEventSummary = 5 << 3 | 2;
constexpr char kEventSessionLog = 7 << 3 | 2;
constexpr std::array<char, 2> kSessionStart = {1 << 3 | 0, 1};  // status: START
constexpr char kSummaryValue = 1 << 3 | 2;
constexpr char kValueTag = 1 << 3 | 2;
constexpr char kValueSimpleValue = 2 << 3 | 5;

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t remainder = i;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? 0x82F63B78U : 0U);
    table[i] = remainder;
  }
  return table;
}();

template <typename T>
void append_fixed(std::string& out, T value) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const auto bits = std::bit_cast<Bits>(value);
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(bits >> (8 * i) & 0xFF);
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

void append_bytes(std::string& out, char key, std::string_view bytes) {
  out += key;
  append_varint(out, bytes.size());
  out += bytes;
}

std::string event_at(double wall_time) {
  std::string event(1, kEventWallTime);
  append_fixed(event, wall_time);
  return event;
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 && name[0] != '\0' ? name.data() : "localhost";
}

Error write_error(const std::filesystem::path& path, int code) {
  const bool full = code == ENOSPC || code == EDQUOT;
  return {full ? ErrorKind::Resource : ErrorKind::Run,
          Diagnostic{path.string(), 0, 0, "", "cannot be written: " + std::generic_category().message(code), ""}};
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  return std::rotr(~crc, 15) + 0xA282EAD8U;
}

EventWriter::EventWriter(const std::filesystem::path& directory, int64_t first_step) {
  std::error_code failure;
  std::filesystem::create_directories(directory, failure);
  if (failure) throw write_error(directory, failure.value());
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  path_ = directory / ("events.out.tfevents." + std::to_string(static_cast<int64_t>(now)) + "." + host_name() + "." +
                       std::to_string(::getpid()) + ".lathe");
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw write_error(path_, errno);
  try {
    std::string event = event_at(now);
    append_bytes(event, kEventFileVersion, "brain.Event:2");
    append_record(event);
    if (first_step > 0) {
      std::string start = event_at(now);
      start += kEventStep;
      append_varint(start, static_cast<uint64_t>(first_step));
      append_bytes(start, kEventSessionLog, {kSessionStart.data(), kSessionStart.size()});
      append_record(start);
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

EventWriter::~EventWriter() { ::close(descriptor_); }

void EventWriter::add_scalars(int64_t step, double wall_time,
                              const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, scalar] : scalars) {
    std::string value;
    append_bytes(value, kValueTag, tag);
    value += kValueSimpleValue;
    append_fixed(value, static_cast<float>(scalar));
    append_bytes(summary, kSummaryValue, value);
  }
  std::string event = event_at(wall_time);
  event += kEventStep;
  append_varint(event, static_cast<uint64_t>(step));
  append_bytes(event, kEventSummary, summary);
  append_record(event);
}

void EventWriter::append_record(std::string_view event) {
  std::string record;
  append_fixed(record, static_cast<uint64_t>(event.size()));
  append_fixed(record, masked_crc32c(record));
  record += event;
  append_fixed(record, masked_crc32c(event));
  for (std::string_view left = record; !left.empty();) {
    const ssize_t written = ::write(descriptor_, left.data(), left.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw write_error(path_, errno);
    left.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace lathe::report
