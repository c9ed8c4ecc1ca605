#include "lathe/base/processor.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lathe {
namespace {

constexpr unsigned kOsxsave = 1u << 27;                      // leaf 1, ecx
constexpr unsigned kAmxBfloat16 = 1u << 22;                  // leaf 7, edx
constexpr unsigned kAmxTile = 1u << 24;                      // leaf 7, edx
constexpr unsigned kTileState = (1u << 17) | (1u << 18);     // XCR0
constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

bool system_keeps_tiles() {
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

bool detect() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsxsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxTile) == 0 || (d & kAmxBfloat16) == 0 || !system_keeps_tiles()) return false;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_bfloat16_matrix_units() {
  static const bool has = detect();
  return has;
}

}  // namespace lathe
