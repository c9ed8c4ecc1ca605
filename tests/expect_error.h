#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "lathe/base/error.h"

namespace lathe::testing {

/// Runs `action`, which must throw a lathe::Error of `kind`, and returns its text.
template <typename Action>
std::string error_text(ErrorKind kind, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), static_cast<int>(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace lathe::testing
