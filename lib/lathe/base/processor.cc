#include "lathe/base/processor.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

namespace lathe {
namespace {

constexpr unsigned kOsxsave = 1u << 27;                                          // leaf 1, ecx
constexpr unsigned kAmxBfloat16 = 1u << 22;                                      // leaf 7, edx
constexpr unsigned kAmxTile = 1u << 24;                                          // leaf 7, edx
constexpr unsigned kAvx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // leaf 7, ebx: F, DQ, BW, VL
constexpr unsigned kAvx512Bfloat16 = 1u << 5;                                    // leaf 7.1, eax
constexpr unsigned kAvx512State = 0xE6;                      // XCR0: SSE, AVX, the masks, both halves of ZMM
constexpr unsigned kTileState = (1u << 17) | (1u << 18);     // XCR0
constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

bool system_keeps(unsigned state) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsxsave) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state;
}

bool is_made_by(unsigned ebx, unsigned ecx, unsigned edx) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == ebx && c == ecx && d == edx;
}

bool is_amd() { return is_made_by(signature_AMD_ebx, signature_AMD_ecx, signature_AMD_edx); }

bool detect_fast_bfloat16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxTile) != 0 && (d & kAmxBfloat16) != 0 && system_keeps(kTileState))
    return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  return (a & kAvx512Bfloat16) != 0 && is_amd() && system_keeps(kAvx512State);
}

bool detect_avx512() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kAvx512) == kAvx512 && system_keeps(kAvx512State);
}

}  // namespace

std::string processor_name() {
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != line.npos) return line.substr(colon + 2);
  }
  return "";
}

bool multiplies_bfloat16_fast() {
  static const bool fast = detect_fast_bfloat16();
  return fast;
}

bool has_avx512() {
  static const bool has = detect_avx512();
  return has;
}

bool is_intel() { return is_made_by(signature_INTEL_ebx, signature_INTEL_ecx, signature_INTEL_edx); }

}  // namespace lathe
