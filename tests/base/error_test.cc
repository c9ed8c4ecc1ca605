#include "lathe/base/error.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

TEST(Diagnostic, PrintsOnlyThePartsThatAreKnown) {
  EXPECT_EQ((Diagnostic{"r.yaml", 14, 9, "adapter.rank", "expected an integer >= 1, got \"sixteen\"", ""}).to_string(),
            "r.yaml:14:9: adapter.rank: expected an integer >= 1, got \"sixteen\"");
  EXPECT_EQ((Diagnostic{"r.yaml", 0, 3, "", "is empty", "write a recipe"}).to_string(),
            "r.yaml: is empty (write a recipe)");
  EXPECT_EQ((Diagnostic{"", 0, 0, "", "is empty", ""}).to_string(), "is empty");
}

TEST(Error, HasOneLinePerDiagnosticAndTheKindsExitCode) {
  const Error error(ErrorKind::Config, {Diagnostic{"a", 1, 0, "", "x", ""}, Diagnostic{"b", 2, 0, "", "y", ""}});
  EXPECT_STREQ(error.what(), "a:1: x\nb:2: y");
  EXPECT_EQ(error.exit_code(), 2);
  EXPECT_EQ(data_error_in("f.safetensors", "w", "is cut").exit_code(), 3);
  EXPECT_STREQ(data_error_in("f.safetensors", "w", "is cut").what(), "f.safetensors: w: is cut");
  EXPECT_STREQ(data_error_at("f.jsonl", 7, "bad JSON").what(), "f.jsonl:7: bad JSON");
}

}  // namespace
}  // namespace lathe
