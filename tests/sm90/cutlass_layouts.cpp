// Our packed metadata, read back by CUTLASS's own layouts: of the tensor that its main loop loads, and of the registers
// that its instruction takes. cutlass_layouts N K prints the number of codes that it compared, or where one differs.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cute/atom/mma_traits_sm90_gmma_sparse.hpp"
#include "cute/tensor.hpp"
#include "cutlass/gemm/collective/builders/sm90_sparse_config.inl"
#include "layout/sm90_metadata.h"

namespace {

using cute::GMMA::Major;
using Traits = cute::MMA_Traits<cute::SM90::GMMA::SPARSE::GMMA_64x128x32_F32BF16BF16_SS<Major::K, Major::K>>;
using Config = cutlass::Sm90GemmSparseConfig<Traits::ValTypeA, Major::K, Traits::ValTypeE, cute::_128>;

constexpr int kFirstTwo = 4;

struct Packed {
  ajour::Sm90Metadata layout;
  std::vector<uint8_t> positions;
  std::vector<ajour::Sm90Cells> room;

  Packed(int64_t n, int64_t k) : layout{n, k}, positions(size_t(n * k / 8)), room(size_t(layout.bytes() / 16)) {
    constexpr int kLegal[] = {4, 8, 9, 12, 13, 14};
    std::mt19937 random(1);
    for (uint8_t& two : positions) two = uint8_t(kLegal[random() % 6] | kLegal[random() % 6] << 4);
    for (int64_t i = 0; i < layout.units(); ++i) ajour::pack_sm90_unit(layout, i, positions.data(), bytes());
  }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(room.data()); }

  // The code of columns `column`.. of a row; beyond the weight that of padding.
  int expected(int64_t row, int64_t column) const {
    if (row >= layout.n || column >= layout.k) return kFirstTwo;
    const int64_t group = row * (layout.k / 4) + column / 4;
    return positions[size_t(group / 2)] >> (group % 2 * 4) & 15;
  }
};

int compared = 0;

bool same(int found, int expected, const char* where, int64_t row, int64_t column) {
  ++compared;
  if (found != expected) printf("%s, row %ld, column %ld: %d, expected %d\n", where, row, column, found, expected);
  return found == expected;
}

// The tensor of CUTLASS's main loop; its layout counts in columns, of which a byte holds eight.
bool as_loaded(Packed& packed) {
  const auto layout = Config::fill_layoutE(
      cute::make_shape(int(ajour::Sm90Metadata::padded(packed.layout.n)), 1, int(packed.layout.k), 1));
  if (int64_t(cute::cosize(layout)) != packed.layout.bytes() * 8) {
    printf("CUTLASS reads %ld bytes of %ld\n", int64_t(cute::cosize(layout)) / 8, packed.layout.bytes());
    return false;
  }
  for (int row = 0; row < ajour::Sm90Metadata::padded(packed.layout.n); ++row) {
    for (int column = 0; column < int(cute::size<1>(layout)); column += 4) {
      const int64_t at = layout(row, column, 0);
      const int found = packed.bytes()[at / 8] >> (at % 8 / 4 * 4) & 15;
      if (!same(found, packed.expected(row, column), "loaded", row, column)) return false;
    }
  }
  return true;
}

// The word of each lane for each 32 columns of the first tile, where layout/sm90_metadata.h says that it stands.
bool as_taken(Packed& packed) {
  const typename Traits::ELayout taken;
  for (int lane = 0; lane < 128; ++lane) {
    if (lane % 4 > 1) continue;  // selector 0: nobody asks them
    const int warp = lane / 32, r = lane % 32 / 4, h = lane % 4;
    const auto* words = reinterpret_cast<const uint32_t*>(packed.bytes() + 256 * warp + 128 * h + 16 * r);
    for (int step = 0; step < 4; ++step) {
      for (int value = 0; value < 32; value += 4) {  // a value is a bit for each of 16 columns of two rows
        const int place = int(taken(lane, value)), row = place % 64, column = place / 64;
        const int found = words[step] >> value & 15;
        if (!same(found, packed.expected(row, 32 * step + column), "taken", row, 32 * step + column)) return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int, char** argv) {
  Packed packed(atol(argv[1]), atol(argv[2]));
  if (!as_loaded(packed) || !as_taken(packed)) return 1;
  printf("%d\n", compared);
}
