#include "lathe/report/profile.h"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::report {
namespace {

constexpr int kNameWidth = 44;

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  std::array<char, 256> text{};
  va_list rest;
  va_start(rest, pattern);
  std::vsnprintf(text.data(), text.size(), pattern, rest);
  va_end(rest);
  return text.data();
}

double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

std::string or_blank(bool known, const char* pattern, double value) { return known ? format(pattern, value) : ""; }

// An amount in units of 1e9, its rate, and the rate's share of what the machine can do.
std::string amount_cells(int64_t amount, int64_t self_ns, const double* peak) {
  const bool any = amount > 0 && self_ns > 0;
  const double rate = any ? static_cast<double>(amount) / seconds(self_ns) : 0;
  return format("%9s%8s%7s", or_blank(amount > 0, "%.3f", static_cast<double>(amount) * 1e-9).c_str(),
                or_blank(any, "%.1f", rate * 1e-9).c_str(),
                or_blank(any && peak != nullptr, "%.0f %%", peak == nullptr ? 0 : 100 * rate / *peak).c_str());
}

std::string table_line(const OperatorRow& row, int64_t total_ns, const std::optional<MachinePeak>& peak) {
  std::string name = printable(row.name);
  if (name.size() > kNameWidth) name = name.substr(0, kNameWidth - 3) + "...";
  return format("%-*s%8lld%11.2f%7.1f", kNameWidth, name.c_str(), static_cast<long long>(row.calls),
                seconds(row.self_cpu_ns) * 1e3,
                total_ns > 0 ? 100 * static_cast<double>(row.self_cpu_ns) / static_cast<double>(total_ns) : 0.0) +
         amount_cells(row.flops, row.self_cpu_ns, peak ? &peak->flops_per_second : nullptr) +
         amount_cells(row.bytes, row.self_cpu_ns, peak ? &peak->bytes_per_second : nullptr);
}

OperatorRow sum_of(const std::string& name, const OperatorRow* begin, const OperatorRow* end) {
  OperatorRow sum{name};
  for (const OperatorRow* row = begin; row != end; ++row) {
    sum.calls += row->calls;
    sum.self_cpu_ns += row->self_cpu_ns;
    sum.flops += row->flops;
    sum.bytes += row->bytes;
  }
  return sum;
}

std::string microseconds(int64_t ns) { return format("%.3f", static_cast<double>(ns) * 1e-3); }

}  // namespace

std::optional<MachinePeak> MachinePeak::read(const std::string& file) {
  try {
    const Json json = read_json_file(file, 1 << 20);
    const JsonObject object(json, file);
    const MachinePeak peak{object.number("gemm_flops"), object.number("memory_bytes_per_second")};
    if (peak.flops_per_second > 0 && peak.bytes_per_second > 0) return peak;
  } catch (const Error&) {
  }
  return std::nullopt;
}

std::string chrome_trace(const Profile& profile) {
  std::vector<std::string> quoted;
  for (const std::string& name : profile.names)
    quoted.push_back(Json(name).dump(-1, ' ', false, Json::error_handler_t::replace));
  std::string out =
      "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
      R"({"ph":"M","pid":1,"tid":1,"name":"process_name","args":{"name":"lathe train"}},
{"ph":"M","pid":1,"tid":1,"name":"thread_name","args":{"name":"training"}})";
  for (const ProfileEvent& event : profile.events) {
    out += ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":1,\"name\":" + quoted[event.name] +
           ",\"ts\":" + microseconds(event.start_ns) + ",\"dur\":" + microseconds(event.wall_ns) +
           ",\"tts\":" + microseconds(event.cpu_start_ns) + ",\"tdur\":" + microseconds(event.cpu_ns) +
           ",\"args\":{\"step\":" + std::to_string(event.step);
    if (event.flops > 0) out += ",\"flops\":" + std::to_string(event.flops);
    if (event.bytes > 0) out += ",\"bytes\":" + std::to_string(event.bytes);
    out += "}}";
  }
  return out + "\n]}\n";
}

std::vector<OperatorRow> operator_rows(const Profile& profile) {
  std::vector<OperatorRow> rows;
  for (const std::string& name : profile.names) rows.push_back({name});
  for (const ProfileEvent& event : profile.events) {
    OperatorRow& row = rows[event.name];
    ++row.calls;
    row.self_cpu_ns += event.self_cpu_ns;
    row.flops += event.flops;
    row.bytes += event.bytes;
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const OperatorRow& a, const OperatorRow& b) { return a.self_cpu_ns > b.self_cpu_ns; });
  return rows;
}

std::vector<std::string> operator_table(const Profile& profile, const std::optional<MachinePeak>& peak,
                                        size_t max_rows) {
  const std::vector<OperatorRow> rows = operator_rows(profile);
  const OperatorRow* const end = rows.data() + rows.size();
  const OperatorRow all = sum_of("all", rows.data(), end);
  std::vector<std::string> lines = {
      format("%lld steps, %.3f s of CPU on the training thread, %lld threads",
             static_cast<long long>(profile.num_steps), seconds(all.self_cpu_ns),
             static_cast<long long>(profile.num_threads)),
      peak ? format("the machine's peak: %.1f GF/s in float32 products, %.1f GB/s of memory",
                    peak->flops_per_second * 1e-9, peak->bytes_per_second * 1e-9)
           : "the machine's peak is not measured yet: lathe doctor does",
      format("%-*s%8s%11s%7s%9s%8s%7s%9s%8s%7s", kNameWidth, "operator, own kernel or phase", "calls", "self ms", "%",
             "GFLOP", "GF/s", "peak", "GB", "GB/s", "peak")};
  const OperatorRow* const shown = rows.data() + std::min(max_rows, rows.size());
  for (const OperatorRow* row = rows.data(); row != shown; ++row)
    lines.push_back(table_line(*row, all.self_cpu_ns, peak));
  if (shown != end)
    lines.push_back(table_line(sum_of(std::to_string(end - shown) + " others", shown, end), all.self_cpu_ns, peak));
  lines.push_back(table_line(all, all.self_cpu_ns, peak));
  return lines;
}

void write_profile(const Profile& profile, const std::optional<MachinePeak>& peak,
                   const std::filesystem::path& directory) {
  write_file_atomically(directory / "trace.json", chrome_trace(profile));
  write_file_atomically(directory / "operators.txt",
                        join(operator_table(profile, peak, profile.names.size()), "\n") + "\n");
}

}  // namespace lathe::report
