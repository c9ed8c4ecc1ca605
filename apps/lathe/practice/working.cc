#include "practice/working.h"

#include <cmath>
#include <cstdio>
#include <utility>

namespace lathe::app::practice {
namespace {

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// 1234567 -> "1,234,567"; a fraction to six digits.
std::string grouped(Amount value) {
  if (value != std::floor(value) || std::abs(value) >= 0x1p63) return printed("%.6g", value);
  std::string digits = printed("%.0f", std::abs(value));
  for (size_t place = digits.size(); place > 3; place -= 3) digits.insert(place - 3, ",");
  return (value < 0 ? "-" : "") + digits;
}

// 240.0500 -> "240.05", 22.00 -> "22"
std::string trimmed(std::string number) {
  if (number.find('.') == std::string::npos) return number;
  while (number.back() == '0') number.pop_back();
  if (number.back() == '.') number.pop_back();
  return number;
}

// With the largest prefix that leaves at least 1: "178.1 T".
std::string scaled(Amount value, Amount base, std::initializer_list<const char*> prefixes, const char* format) {
  const char* prefix = "";
  for (const char* next : prefixes) {
    if (std::abs(value) < base) break;
    value /= base;
    prefix = next;
  }
  return trimmed(printed(format, value)) + " " + prefix;
}

}  // namespace

std::string amount_text(Amount value, Unit unit) {
  switch (unit) {
    case Unit::Flops:
      if (std::abs(value) < 1e6) return grouped(value) + " FLOPs";
      return grouped(value) + " FLOPs (" + scaled(value, 1000, {"k", "M", "G", "T", "P"}, "%.4g") + "FLOPs)";
    case Unit::Bytes:
      if (std::abs(value) < 1024) return grouped(value) + " B";
      return grouped(value) + " B (" + scaled(value, 1000, {"K", "M", "G", "T"}, "%.4g") + "B, " +
             scaled(value, 1024, {"Ki", "Mi", "Gi", "Ti"}, "%.2f") + "B)";
    case Unit::Share:
      return grouped(value) + " (" + trimmed(printed("%.2f", 100 * value)) + " %)";
    case Unit::Number:
      break;
  }
  return grouped(value);
}

std::string filled(std::string_view pattern, std::initializer_list<Amount> values) {
  std::string out;
  const Amount* next = values.begin();
  for (size_t at = 0; at < pattern.size(); ++at) {
    if (pattern.substr(at, 2) == "{}" && next != values.end()) {
      out += grouped(*next++);
      ++at;
    } else {
      out += pattern[at];
    }
  }
  return out;
}

void Working::say(std::string text) { answer.derivation.push_back({std::move(text), "", ""}); }

void Working::state_convention(Unit unit) {
  if (!stated_.insert(unit).second) return;
  if (unit == Unit::Flops) say("Convention: a multiply-add counts 2 FLOPs.");
  if (unit == Unit::Bytes) say("Convention: 1 MB is 10^6 bytes, 1 MiB is 2^20 bytes (and so for K, G, T).");
}

Amount Working::derive(std::string text, std::string formula, Amount value, Unit unit) {
  value *= 1 + perturbation_;
  state_convention(unit);
  answer.derivation.push_back({std::move(text), std::move(formula), amount_text(value, unit)});
  return value;
}

void Working::claim_equal(std::string text, Amount derived, Amount measured, Unit unit) {
  answer.claims.push_back({std::move(text), amount_text(derived, unit), amount_text(measured, unit),
                           derived == measured, /*of_derivation=*/true});
}

void Working::claim_close(std::string text, Amount derived, Amount measured, double tolerance, Unit unit) {
  answer.claims.push_back({std::move(text),
                           amount_text(derived, unit) + " within " + short_number(100 * tolerance) + " %",
                           amount_text(measured, unit), std::abs(measured - derived) <= tolerance * std::abs(derived),
                           /*of_derivation=*/true});
}

void Working::claim(std::string text, std::string expected, std::string measured, bool holds) {
  answer.claims.push_back({std::move(text), std::move(expected), std::move(measured), holds});
}

}  // namespace lathe::app::practice
