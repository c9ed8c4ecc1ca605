#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lathe/report/charts.h"

namespace lathe::report {

/// In the head of every page: how a program knows that Lathe wrote it.
inline constexpr const char* kPageMark = "<meta name=\"generator\" content=\"Lathe\">";

/// A self-contained HTML page of text and charts.
struct Document {
  std::string kind = {};   ///< a word above the heading: what sort of page this is
  std::string title = {};  ///< of the window
  std::string heading = {};
  /// What the curves' `run` counts: the curves of one name have one colour, and a switch when there are several names.
  std::vector<std::string> names = {};
  std::string before = {};  ///< HTML above the charts
  std::vector<Chart> charts = {};
  bool charts_in_text = false;      ///< `before` and `after` hold the charts' figures and the names' switches
  std::string without_charts = {};  ///< a sentence where there are none; empty: no section
  std::string after = {};           ///< HTML below the charts
  bool pictures = false;            ///< whether that HTML holds images of its own, as data: addresses
};

/// A text as HTML: markup escaped, control characters as \xNN.
std::string html(std::string_view text);

/// The page loads nothing: its policy allows the two inline scripts and the one style by their hashes, and `pictures`.
/// Texts are escaped, `before` and `after` are taken as they are. Equal documents give equal bytes.
std::string render_document(const Document& document);

/// The places where the page's script draws these charts; and, for two or more names, the switches that show and hide
/// their curves in all charts. `first` is the place of names[0] in the document's names.
std::string chart_figures(const std::vector<Chart>& charts);
std::string name_switches(const std::vector<std::string>& names, size_t first = 0);

/// Shares of a whole by row and column, as an image of cells: the darker, the larger.
struct HeatMap {
  std::string title = {}, note = {};
  std::string row_label = {};                     ///< what a row is: "expert"
  std::string column_label = {};                  ///< what the columns go through: "step 0 to 1500"
  std::vector<std::vector<double>> columns = {};  ///< columns[c][r] in [0, 1], all of one length
};

/// The maps beside one another, as HTML that needs no script.
std::string heat_maps(const std::vector<HeatMap>& maps);

}  // namespace lathe::report
