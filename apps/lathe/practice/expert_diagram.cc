#include "practice/expert_diagram.h"

#include <cmath>

#include "lathe/base/text.h"

namespace lathe::app::practice {
namespace {

// A drawing of boxes and arrows in user units. It refers to nothing: arrow heads are triangles of their own.
class Drawing {
 public:
  void box(int x, int y, int width, int height, std::string_view label, std::string_view kind = "") {
    out_ += "<rect class=\"box " + std::string(kind) + "\" x=\"" + number(x) + "\" y=\"" + number(y) + "\" width=\"" +
            number(width) + "\" height=\"" + number(height) + "\" rx=\"6\"/>\n";
    text(x + width / 2, y + height / 2 + 5, label, kind == "off" ? "off" : "");
  }
  void text(int x, int y, std::string_view label, std::string_view kind = "") {
    out_ += "<text" + (kind.empty() ? "" : " class=\"" + std::string(kind) + "\"") + " x=\"" + number(x) + "\" y=\"" +
            number(y) + "\">" + escape_html(label) + "</text>\n";
  }
  void line(int x1, int y1, int x2, int y2, std::string_view kind = "") {
    out_ += "<path class=\"arrow " + std::string(kind) + "\" d=\"M" + number(x1) + " " + number(y1) + "L" + number(x2) +
            " " + number(y2) + "\"/>\n";
  }
  void arrow(int x1, int y1, int x2, int y2, std::string_view kind = "") {
    line(x1, y1, x2, y2, kind);
    const double length = std::hypot(x2 - x1, y2 - y1), dx = (x2 - x1) / length, dy = (y2 - y1) / length;
    const auto point = [&](double back, double side) {
      return std::to_string(std::lround(x2 - back * dx - side * dy)) + "," +
             std::to_string(std::lround(y2 - back * dy + side * dx));
    };
    out_ += "<polygon class=\"head\" points=\"" + point(0, 0) + " " + point(9, 4) + " " + point(9, -4) + "\"/>\n";
  }
  std::string svg(int width, int height, std::string_view label) const {
    return "<svg role=\"img\" aria-label=\"" + escape_html(label) + "\" viewBox=\"0 0 " + number(width) + " " +
           number(height) + "\">\n" + out_ + "</svg>\n";
  }

 private:
  static std::string number(int value) { return std::to_string(value); }
  std::string out_;
};

constexpr const char* kText =
    "          x  [T, D]                                the tokens\n"
    "          |\n"
    "          +------------------------------------+\n"
    "          |                                    |\n"
    "     router (gate)      z = x W'  [T, E]       |   one score per token and expert\n"
    "          |                                    |\n"
    "     softmax, top-k     gates  [T, k]          |   k experts per token, weights that sum to 1\n"
    "          |      \\                             |\n"
    "          |       `--> load balancing          |   auxiliary loss E sum f P, or a bias: keeps experts in use\n"
    "          |                                    |\n"
    "   +------+------+-------- ... ------+         |   dispatch: tokens sorted by expert\n"
    "   |             |                   |         |\n"
    "expert 1     expert 2    ...     expert E      |   each an MLP: D -> F -> D; only the chosen ones run\n"
    "   |             |                   |         |\n"
    "   +------+------+-------- ... ------+         |\n"
    "          |                                    |\n"
    "     weighted combination                      |   sum of gate x expert(x)  [T, D]\n"
    "          |                                    |\n"
    "          + <----------------------------------+   residual\n"
    "          |\n"
    "          y  [T, D]\n";

}  // namespace

Diagram expert_diagram() {
  Drawing d;
  d.text(115, 18, "x [T, D]: the tokens");
  d.arrow(115, 26, 115, 48);
  d.line(115, 36, 352, 36);
  d.line(352, 36, 352, 438);
  d.box(30, 50, 170, 36, "router (gate): z = x W'");
  d.arrow(115, 86, 115, 116);
  d.text(124, 106, "scores [T, E]", "shape");
  d.box(30, 118, 170, 36, "softmax, top-k");
  d.arrow(200, 136, 220, 136);
  d.box(222, 118, 118, 36, "load balancing");
  d.text(222, 170, "auxiliary loss", "shape");
  d.text(222, 185, "or bias, in training", "shape");
  d.text(6, 178, "gates [T, k],", "shape");
  d.text(6, 194, "sum 1", "shape");
  const char* const names[] = {"expert 1", "expert 2", "expert 3", "expert E"};
  const int left[] = {6, 84, 162, 266};
  for (int i = 0; i < 4; ++i) {
    const bool chosen = i == 1 || i == 3;
    const int middle = left[i] + 35;
    d.arrow(115, 154, middle, 278, chosen ? "on" : "off");
    d.box(left[i], 280, 70, 40, names[i], chosen ? "on" : "off");
    d.arrow(middle, 320, 115, 372, chosen ? "on" : "off");
  }
  d.text(249, 304, "...");
  d.text(248, 210, "dispatch: tokens", "shape");
  d.text(248, 226, "sorted by expert", "shape");
  d.text(222, 354, "each an MLP D, F, D;", "shape");
  d.text(222, 370, "only k of them run", "shape");
  d.box(30, 374, 170, 36, "weighted combination");
  d.text(208, 396, "sum of gate x expert(x)", "shape");
  d.arrow(115, 410, 115, 430);
  d.text(115, 442, "+");
  d.arrow(352, 438, 128, 438);
  d.text(250, 432, "residual");
  d.arrow(115, 448, 115, 470);
  d.text(115, 486, "y [T, D]");
  d.text(6, 514, "T tokens, D width, F hidden width, E experts,", "shape");
  d.text(6, 530, "k chosen", "shape");
  const char* title = "A mixture-of-experts layer in the place of a Transformer block's MLP";
  return {title, kText, d.svg(360, 538, title)};
}

}  // namespace lathe::app::practice
