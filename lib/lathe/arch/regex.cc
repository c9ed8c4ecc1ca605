#include "lathe/arch/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <utility>

#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

// A path has some sixty characters: an honest pattern needs a few thousand steps at most.
constexpr uint32_t kMaxSteps = 100'000;
constexpr uint32_t kMaxDepth = 10'000;
constexpr uint32_t kMaxHeapKilobytes = 16 * 1024;
constexpr size_t kMaxPatternBytes = 10'000;

std::string pcre_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR pcre_text(const std::string& text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

struct Regex::Compiled {
  template <auto Free>
  struct PcreDeleter {
    void operator()(auto* pointer) const { Free(pointer); }
  };

  std::unique_ptr<pcre2_code, PcreDeleter<pcre2_code_free>> code;
  std::unique_ptr<pcre2_match_context, PcreDeleter<pcre2_match_context_free>> context{
      pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_match_data, PcreDeleter<pcre2_match_data_free>> data{pcre2_match_data_create(1, nullptr)};
};

Regex::Regex(std::string pattern, Diagnostic place, ErrorKind kind)
    : pattern_(std::move(pattern)), place_(std::move(place)), kind_(kind) {
  if (pattern_.size() > kMaxPatternBytes) {
    fail("a regular expression of at most " + std::to_string(kMaxPatternBytes) + " bytes");
  }
  auto compiled = std::make_shared<Compiled>();
  int code = 0;
  size_t offset = 0;
  constexpr uint32_t kPythonFlavour = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  compiled->code.reset(pcre2_compile(pcre_text(pattern_), pattern_.size(), kPythonFlavour, &code, &offset, nullptr));
  if (!compiled->code) {
    fail("a regular expression: " + pcre_message(code) + " at character " + std::to_string(offset + 1));
  }
  pcre2_set_match_limit(compiled->context.get(), kMaxSteps);
  pcre2_set_depth_limit(compiled->context.get(), kMaxDepth);
  pcre2_set_heap_limit(compiled->context.get(), kMaxHeapKilobytes);
  compiled_ = std::move(compiled);
}

bool Regex::matches_whole(const std::string& text) const { return match(text, PCRE2_ANCHORED | PCRE2_ENDANCHORED); }
bool Regex::matches_start(const std::string& text) const { return match(text, PCRE2_ANCHORED); }

bool Regex::match(const std::string& text, uint32_t options) const {
  const int result = pcre2_match(compiled_->code.get(), pcre_text(text), text.size(), 0, options, compiled_->data.get(),
                                 compiled_->context.get());
  if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
    fail("a regular expression that matches in bounded time: " + pcre_message(result));
  }
  return result >= 0;
}

void Regex::fail(const std::string& expected) const {
  Diagnostic diagnostic = place_;
  diagnostic.problem = Diagnostic::expected(expected, quote(pattern_));
  throw Error(kind_, diagnostic);
}

}  // namespace lathe::arch
