#include "layout/gap_rows.h"

#include <algorithm>
#include <numeric>

#include "layout/gap_codes.h"
#include "memory/check.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int kWidest = 8192;     // columns of a span: four rows of x take 64 KiB of shared memory
constexpr int kNarrowest = 1024;  // narrower spans are not worth their parts
constexpr int kWorthRows = 4096;  // rows by spans that give every multiprocessor of a large card eight warps
constexpr int kReserved = 1024;   // bytes of shared memory that the system takes for each block

// On torch's threads. Rows of a tile that two threads take at once are different bytes of it.
template <class Work>
void each(const Work& work) {
  parallel_for(0, work.count(), 32, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) work(i);
  });
}

}  // namespace

GapRows gap_rows(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > INT32_MAX / 64 || k > INT32_MAX / 64) {
    refuse<KernelError>("gap rows take sides of 1 to ", INT32_MAX / 64, ", found ", n, "x", k);
  }
  const int64_t wanted = std::min(ceil_div(k, kNarrowest), ceil_div(kWorthRows, n));
  const int64_t spans = std::max(ceil_div(k, kWidest), wanted), width = ceil_div(ceil_div(k, spans), 8) * 8;
  return {int(n), int(k), int(ceil_div(k, width)), int(width)};
}

void count_gap_rows(const GapRows& w, const BitmapTensors& matrix, int32_t* counts) {
  each(CountGapRows{w, {matrix, w.n, w.k}, counts});
}

void order_gap_rows(const GapRows& w, const int32_t* counts, int32_t* order) {
  std::iota(order, order + w.n, 0);
  std::stable_sort(order, order + w.n, [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
  std::fill(order + w.n, order + w.groups() * kGapRows, -1);
}

void measure_gap_rows(const GapRows& w, const BitmapTensors& matrix, const int32_t* order, int32_t* steps) {
  each(MeasureGapRows{w, {matrix, w.n, w.k}, order, steps});
}

void index_gap_rows(const GapRows& w, const int32_t* steps, int32_t* index) {
  int64_t end = index[0] = 0;
  for (int64_t i = 0; i < int64_t(w.spans) * w.groups(); ++i) {
    const int32_t* of = steps + i * kGapRows;
    end += 1 + int64_t(*std::max_element(of, of + kGapRows)) * GapRows::step_units();
    if (end > INT32_MAX) refuse<KernelError>("gap rows have at most 128 GiB, found more than ", end, " times 64 bytes");
    index[i + 1] = int32_t(end);
  }
}

void pack_gap_rows(const GapRows& w, const BitmapTensors& matrix, const int32_t* order, const int32_t* index,
                   uint8_t* data) {
  each(PackGapRows{w, {matrix, w.n, w.k}, order, index, data});
}

int64_t find_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                      const BitmapTensors& matrix) {
  const BitmapTiles to{matrix, w.n, w.k};
  each(FindGapRows{w, data, order, index, to});
  const CountGroups groups{to};
  each(groups);
  return sum_offsets(matrix.offsets, groups.count());
}

void unpack_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                     const BitmapTensors& matrix) {
  each(UnpackGapRows{w, data, order, index, {matrix, w.n, w.k}});
}

GapShape gap_shape(int64_t m, const GapRows& w, const DeviceLimits& device, int blocks) {
  if (m < 1 || m > kGapMaxRows) refuse<KernelError>("gap rows serve 1 to ", kGapMaxRows, " rows of x, found ", m);
  if (blocks < 1) refuse<KernelError>("gap rows need a block at least, found c", blocks);
  GapShape shape{};
  shape.tokens = m <= 2 ? int(m) : 4;
  shape.shared_bytes = ceil_div(int64_t(w.width + 1) * shape.slot_bytes(), 128) * 128;
  if (shape.shared_bytes > device.block_shared) {
    refuse<KernelError>("gap rows need ", shape.shared_bytes, " bytes of shared memory for a span of ", w.width,
                        " columns, this device has ", device.block_shared);
  }
  const int64_t fit = std::max<int64_t>(1, device.processor_shared / (shape.shared_bytes + kReserved));
  const int64_t at_once = device.processors * std::min<int64_t>(blocks, fit) / w.spans;
  shape.blocks = int(std::max<int64_t>(1, std::min(at_once, ceil_div(w.groups(), kGapWarps))));
  if (w.spans > 1) shape.scratch_bytes = int64_t(w.spans) * w.groups() * kGapRows * shape.tokens * 4;
  return shape;
}

}  // namespace ajour
