#pragma once

#include <initializer_list>
#include <set>
#include <string>
#include <string_view>

#include "lathe/cost/ledger.h"
#include "practice/question.h"

namespace lathe::app::practice {

using cost::Amount;

/// What a number counts: it decides how the number is written.
enum class Unit {
  Number,  ///< 16,384; 0.6745
  Flops,   ///< 178,120,883,699,712 FLOPs (178.1 TFLOPs)
  Share,   ///< 0.015625 (1.56 %)
  Bytes,   ///< 257,748,369,408 B (257.7 GB, 240.05 GiB)
};
std::string amount_text(Amount value, Unit unit = Unit::Number);

/// `pattern` with each {} replaced by the next value: "4 x {} x {}".
std::string filled(std::string_view pattern, std::initializer_list<Amount> values);

/// The working of an answer: numbers that are derived, and claims that a run decides about them.
class Working {
 public:
  explicit Working(const Settings& settings) : perturbation_(settings.perturbation) {}

  /// A step in words.
  void say(std::string text);
  /// A step that computes: returns `value`, which claims must use. Before the first of a unit stands its convention.
  Amount derive(std::string text, std::string formula, Amount value, Unit unit = Unit::Number);

  /// Derived and measured are the same number.
  void claim_equal(std::string text, Amount derived, Amount measured, Unit unit = Unit::Number);
  /// They differ by at most `tolerance`, as a share of the derived.
  void claim_close(std::string text, Amount derived, Amount measured, double tolerance, Unit unit = Unit::Number);
  /// What is no number of the derivation: bits, an order, a limit.
  void claim(std::string text, std::string expected, std::string measured, bool holds);

  Answer answer;

 private:
  void state_convention(Unit unit);

  double perturbation_;
  std::set<Unit> stated_;
};

}  // namespace lathe::app::practice
