// Packed positions of 8-bit values, read by the layout of the tensor that CUTLASS's main loop loads.
// scaled_layouts ROWS K PACKED CODES: a byte for each code of the padded rows, row by row.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "cute/atom/mma_traits_sm90_gmma_sparse.hpp"
#include "cute/tensor.hpp"
#include "cutlass/gemm/collective/builders/sm90_sparse_config.inl"

using cute::GMMA::Major;
using Traits = cute::MMA_Traits<cute::SM90::GMMA::SPARSE::GMMA_64x128x64_F32E4M3E4M3_SS_TN<>>;
using Config = cutlass::Sm90GemmSparseConfig<Traits::ValTypeA, Major::K, Traits::ValTypeE, cute::_128>;

int main(int, char** argv) {
  const int rows = atoi(argv[1]), k = atoi(argv[2]);
  std::ifstream in(argv[3], std::ios::binary);
  const std::vector<char> packed{std::istreambuf_iterator<char>(in), {}};
  const auto layout = Config::fill_layoutE(cute::make_shape(rows, 1, k, 1));  // counts in columns, eight in a byte
  if (size_t(cute::cosize(layout)) != packed.size() * 8) {
    printf("CUTLASS reads %ld bytes of %zu\n", long(cute::cosize(layout)) / 8, packed.size());
    return 1;
  }
  std::vector<char> codes;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < int(cute::size<1>(layout)); column += 4) {
      const int64_t at = layout(row, column, 0);
      codes.push_back(packed[size_t(at / 8)] >> (at % 8 / 4 * 4) & 15);
    }
  }
  std::ofstream(argv[4], std::ios::binary).write(codes.data(), std::streamsize(codes.size()));
}
