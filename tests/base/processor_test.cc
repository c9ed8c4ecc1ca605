#include "lathe/base/processor.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace lathe {
namespace {

TEST(Processor, AgreesWithWhatTheSystemSays) {
  std::ostringstream text;
  text << std::ifstream("/proc/cpuinfo").rdbuf();
  const auto has = [&](const char* word) { return text.str().find(word) != std::string::npos; };
  const bool amd = has("AuthenticAMD") && has(" avx512_bf16");
  if (amd) {
    EXPECT_TRUE(multiplies_bfloat16_fast());
  }
  // With AMX the kernel may still refuse the permission.
  if (!amd && !has("amx_bf16")) {
    EXPECT_FALSE(multiplies_bfloat16_fast());
  }
}

}  // namespace
}  // namespace lathe
