#include "layout/sm90_metadata.h"

#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int64_t kUnitsAtOnce = 4096;

}  // namespace

void pack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* positions, uint8_t* metadata) {
  parallel_for(0, layout.units(), kUnitsAtOnce, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) pack_sm90_unit(layout, unit, positions, metadata);
  });
}

void unpack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* metadata, uint8_t* positions) {
  parallel_for(0, layout.units(), kUnitsAtOnce, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) unpack_sm90_unit(layout, unit, metadata, positions);
  });
}

}  // namespace ajour
