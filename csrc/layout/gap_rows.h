// Gap rows: an unstructured weight with few non-zeros, as the kernel for 1 to 4 rows of x reads it on a GPU, and bit
// for bit back. A kept value costs its 16 bits and the 8 bits of the gap before it: no bit for a zero, nothing to
// decode but an addition.
//
// Rows stand sorted by their number of values, four of them to a group, and k is cut into spans whose x fits shared
// memory. A warp takes a group of a span: eight lanes share a row, each with a run of its values. Of a group, for s in
// its steps and all 32 lanes:
//   starts  [32 lanes] of 16 bits: where the lane stands before its first value, as a slot of x
//   values  [32 lanes][4]          of step s
//   gaps    [32 lanes] of 32 bits  of step s, the first of four in the lowest byte
// Slot p holds column p - 1 of the span; slot 0 a zero. A gap is added to the lane's slot; the value there belongs to
// that slot. A gap of 255 is a step towards a farther value and has none of its own; neither has a gap of 0, unless it
// follows a 255. What has no value has +0.0. An index tells where groups begin, in units of 64 bytes, span by span.
#pragma once
#include "layout/bitmap.h"
#include "layout/decode_shape.h"

namespace ajour {

constexpr int kGapRows = 4;    // of a group
constexpr int kGapLanes = 8;   // of a row
constexpr int kGapValues = 4;  // of a lane in a step
constexpr int kGapFar = 255;
constexpr int kGapUnit = 64;  // bytes in which the index counts
constexpr int kGapWarps = 8;  // of a block
constexpr int kGapMaxRows = 4;

struct GapRows {
  int n, k;
  int spans, width;  // columns of a span

  AJOUR_BOTH int groups() const { return (n + kGapRows - 1) / kGapRows; }  // of a span
  AJOUR_BOTH int columns(int span) const { return k - span * width < width ? k - span * width : width; }
  AJOUR_BOTH static constexpr int step_units() { return kWarp * kGapValues * 3 / kGapUnit; }
  // Byte offsets in a group of what a lane reads: 2, 8 and 4 bytes.
  AJOUR_BOTH static int start_at(int lane) { return lane * 2; }
  AJOUR_BOTH static int values_at(int step, int lane) { return kGapUnit + step * step_units() * kGapUnit + lane * 8; }
  AJOUR_BOTH static int gaps_at(int step, int lane) {
    return kGapUnit + step * step_units() * kGapUnit + kWarp * 8 + lane * 4;
  }
};

// How many spans follows from the size alone. Throws KernelError for a side beyond 32 bits.
GapRows gap_rows(int64_t n, int64_t k);

// Packing a canonical weight with 16-bit values, step by step, on torch's threads: the values of each row, counts [n];
// the rows, those with most values first and -1 where there is none, order [4 groups]; the steps that each row needs in
// each span, steps [spans, 4 groups]; where groups begin, index [spans * groups + 1]; and the rows themselves, into
// zeros. Throws KernelError if the index can't count them.
void count_gap_rows(const GapRows& layout, const BitmapTensors& matrix, int32_t* counts);
void order_gap_rows(const GapRows& layout, const int32_t* counts, int32_t* order);
void measure_gap_rows(const GapRows& layout, const BitmapTensors& matrix, const int32_t* order, int32_t* steps);
void index_gap_rows(const GapRows& layout, const int32_t* steps, int32_t* index);
void pack_gap_rows(const GapRows& layout, const BitmapTensors& matrix, const int32_t* order, const int32_t* index,
                   uint8_t* data);

// The inverse, first offsets and bitmaps, which are zeros before; that gives the number of values. Then these.
int64_t find_gap_rows(const GapRows& layout, const uint8_t* data, const int32_t* order, const int32_t* index,
                      const BitmapTensors& matrix);
void unpack_gap_rows(const GapRows& layout, const uint8_t* data, const int32_t* order, const int32_t* index,
                     const BitmapTensors& matrix);

// How the kernel is laid over a device: `blocks` blocks take every `blocks`th eight groups of each span.
struct GapShape {
  int tokens;  // of x in a slot: 1, 2 or 4
  int blocks;
  int64_t shared_bytes;
  int64_t scratch_bytes;  // the parts of rows; 0 for one span

  AJOUR_BOTH int slot_bytes() const { return tokens <= 2 ? 4 : 8; }
};

// For m rows of x and at most `blocks` blocks on a multiprocessor. Throws KernelError with what is missing.
GapShape gap_shape(int64_t m, const GapRows& layout, const DeviceLimits& device, int blocks);

}  // namespace ajour
