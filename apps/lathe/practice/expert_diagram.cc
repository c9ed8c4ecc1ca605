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
  d.text(250, 22, "x [T, D]: the tokens");
  d.arrow(250, 30, 250, 56);
  d.line(250, 42, 640, 42);
  d.line(640, 42, 640, 438);
  d.box(150, 58, 200, 38, "router (gate): z = x W'");
  d.text(362, 82, "scores [T, E]", "shape");
  d.arrow(250, 96, 250, 120);
  d.box(150, 122, 200, 38, "softmax, top-k");
  d.text(362, 136, "gates [T, k], sum 1", "shape");
  d.arrow(350, 146, 450, 186);
  d.box(440, 188, 180, 50, "load balancing");
  d.text(530, 254, "auxiliary loss or bias, in training");
  const char* const names[] = {"expert 1", "expert 2", "expert 3", "expert E"};
  for (int i = 0; i < 4; ++i) {
    const bool chosen = i == 1 || i == 3;
    const int x = 20 + 125 * i, middle = x + 52;
    d.arrow(250, 160, middle, 278, chosen ? "on" : "off");
    d.box(x, 280, 104, 46, names[i], chosen ? "on" : "off");
    d.arrow(middle, 326, 250, 372, chosen ? "on" : "off");
  }
  d.text(384, 307, "...");
  d.text(20, 186, "dispatch: tokens", "shape");
  d.text(20, 202, "sorted by expert", "shape");
  d.text(510, 300, "each an MLP D, F, D;", "shape");
  d.text(510, 316, "only k of them run", "shape");
  d.box(150, 374, 200, 38, "weighted combination");
  d.text(362, 398, "sum of gate x expert(x)", "shape");
  d.arrow(250, 412, 250, 430);
  d.text(250, 444, "+");
  d.arrow(640, 438, 264, 438);
  d.text(580, 456, "residual");
  d.arrow(250, 450, 250, 470);
  d.text(250, 488, "y [T, D]");
  d.text(360, 488, "T tokens, D width, F hidden width, E experts, k chosen", "shape");
  const char* title = "A mixture-of-experts layer in the place of a Transformer block's MLP";
  return {title, kText, d.svg(700, 500, title)};
}

}  // namespace lathe::app::practice
