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
  if (has("amx_bf16")) GTEST_SKIP() << "permission to use the tiles is the kernel's to give";
  EXPECT_EQ(multiplies_bfloat16_fast(), has("AuthenticAMD") && has(" avx512_bf16"));
}

}  // namespace
}  // namespace lathe
