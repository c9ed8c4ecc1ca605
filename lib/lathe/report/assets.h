#pragma once

#include <string_view>

namespace lathe::report {

/// A text that the page carries inline, and its SHA-256 in base64, by which the page's policy allows it.
struct Asset {
  std::string_view text;
  std::string_view sha256;
};

/// uPlot's and the page's own scripts and styles, put into the library by cmake/EmbedReportAssets.cmake.
extern const Asset kPlotScript;
extern const Asset kPageScript;
extern const Asset kPageStyle;

}  // namespace lathe::report
