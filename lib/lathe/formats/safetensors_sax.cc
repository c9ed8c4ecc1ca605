#include "lathe/formats/safetensors_sax.h"

#include <array>
#include <cstdint>
#include <unordered_set>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

constexpr std::array<std::string_view, 3> kEntryKeys = {"dtype", "shape", "data_offsets"};
constexpr const char* kMetadata = "__metadata__";

// nlohmann's event interface; every event either has its place in the format or throws.
class HeaderEvents {
 public:
  HeaderEvents(const std::string& file, SafetensorsHeader& header) : file_(file), header_(header) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool value) { return unexpected(value ? "true" : "false"); }
  bool number_integer(int64_t value) { return unexpected(std::to_string(value)); }
  bool number_float(double, const std::string& text) { return unexpected(text.substr(0, 40)); }
  bool binary(Json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place_ != Place::Shape && place_ != Place::Offsets) return unexpected(std::to_string(value));
    if (value > static_cast<uint64_t>(INT64_MAX))
      fail(Diagnostic::expected("integers below 2^63", std::to_string(value)));
    if (place_ == Place::Shape) {
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (num_offsets_ == 2) fail(Diagnostic::expected("two offsets", "more"));
    (num_offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::Metadata) {
      header_.metadata[std::move(key_)] = std::move(value);
      return true;
    }
    if (place_ != Place::Entry || key_ != "dtype") return unexpected(quote(value));
    const std::optional<Dtype> dtype = find_dtype(value);
    if (!dtype) fail("unknown dtype " + quote(value));
    entry_.dtype = *dtype;
    return true;
  }

  bool start_object(size_t) {
    if (place_ == Place::Start) {
      place_ = Place::Header;
    } else if (place_ == Place::Header) {
      place_ = key_ == kMetadata ? Place::Metadata : Place::Entry;
      entry_ = TensorInfo{};
      num_offsets_ = 0;
      seen_ = {};
      if (place_ == Place::Entry) entry_.name = key_;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& name) {
    if (place_ == Place::Header && !names_.insert(name).second) throw_duplicate(name);
    if (place_ == Place::Metadata && header_.metadata.contains(name)) throw_duplicate(name);
    if (place_ == Place::Entry) mark_entry_key(name);
    key_ = std::move(name);
    return true;
  }

  bool end_object() {
    if (place_ == Place::Entry) {
      for (size_t i = 0; i < kEntryKeys.size(); ++i) {
        if (!seen_.at(i)) throw data_error_in(file_, entry_label(), "has no " + std::string(kEntryKeys.at(i)));
      }
      header_.tensors.push_back(std::move(entry_));
    }
    place_ = Place::Header;
    return true;
  }

  bool start_array(size_t) {
    if (place_ != Place::Entry || key_ == "dtype") return unexpected("an array");
    place_ = key_ == "shape" ? Place::Shape : Place::Offsets;
    return true;
  }

  bool end_array() {
    if (place_ == Place::Offsets && num_offsets_ < 2) {
      fail(Diagnostic::expected("two offsets", std::to_string(num_offsets_)));
    }
    place_ = Place::Entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    throw data_error(file_, "bad JSON at byte " + std::to_string(position) + " of the safetensors header");
  }

 private:
  enum class Place { Start, Header, Metadata, Entry, Shape, Offsets };

  std::string entry_label() const { return tensor_label(entry_.name); }

  std::string place_label() const {
    switch (place_) {
      case Place::Start:
      case Place::Header:
        return tensor_label(key_);
      case Place::Metadata:
        return kMetadata + ("." + tensor_label(key_));
      case Place::Entry:
      case Place::Shape:
      case Place::Offsets:
        break;
    }
    return entry_label() + "." + key_;
  }

  [[noreturn]] void fail(const std::string& problem) const { throw data_error_in(file_, place_label(), problem); }

  bool unexpected(const std::string& got) const {
    switch (place_) {
      case Place::Start:
      case Place::Header:
        fail(Diagnostic::expected("an object", got));
      case Place::Metadata:
        fail(Diagnostic::expected("a string", got));
      case Place::Shape:
      case Place::Offsets:
        fail(Diagnostic::expected("integers from 0", got));
      case Place::Entry:
        break;
    }
    fail(Diagnostic::expected(key_ == "dtype" ? "a string" : "an array of integers", got));
  }

  [[noreturn]] void throw_duplicate(const std::string& name) const {
    throw data_error_in(file_, place_ == Place::Metadata ? kMetadata + ("." + tensor_label(name)) : tensor_label(name),
                        "is listed twice");
  }

  void mark_entry_key(const std::string& name) {
    size_t i = 0;
    while (i < kEntryKeys.size() && kEntryKeys.at(i) != name) ++i;
    if (i == kEntryKeys.size()) {
      throw data_error_in(file_, entry_label(), "unknown key " + quote(name), "known: dtype, shape, data_offsets");
    }
    if (std::exchange(seen_.at(i), true)) throw data_error_in(file_, entry_label(), "has " + name + " twice");
  }

  const std::string& file_;
  SafetensorsHeader& header_;
  Place place_ = Place::Start;
  std::string key_;
  TensorInfo entry_;
  int num_offsets_ = 0;
  std::array<bool, kEntryKeys.size()> seen_{};
  std::unordered_set<std::string> names_;
};

}  // namespace

void read_header_json(std::string_view json, const std::string& file, SafetensorsHeader& header) {
  if (const size_t bad = find_invalid_utf8(json); bad != std::string_view::npos) {
    throw data_error(file, "the safetensors header is not valid UTF-8 at byte " + std::to_string(bad));
  }
  // The parser would take a NUL for the end and never see what follows it.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    throw data_error(file, "bad JSON at byte " + std::to_string(nul) + " of the safetensors header");
  }
  HeaderEvents events(file, header);
  Json::sax_parse(json.begin(), json.end(), &events);
}

}  // namespace lathe::formats
